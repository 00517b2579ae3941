"""vLLM inside the trainer's processes, on the trainer's GPUs: without a server, and with the memory used in turns.

Each rank runs and steps an engine core of its own. With `tensor` above 1, that many consecutive ranks form one engine: each
runs the same schedule over its part of the model, so all of them must make the same calls in the same order, and all have
the same completions (see `load_balanced`).
"""

from __future__ import annotations

import queue
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork import distributed
from megatron_fork.errors import RolloutError
from megatron_fork.rollout.config import ColocatedConfig
from megatron_fork.rollout.engine import Completion, InProcessEngine, Request
from megatron_fork.rollout.engines import EngineContext
from megatron_fork.rollout.in_process.vllm_process import SleepMode, one_line, start_vllm, vllm_module
from megatron_fork.rollout.pending import DrawnSegment, PendingRequest, vllm_sampling
from megatron_fork.rollout.weights import buckets

# Tokens of a response that the engine returns together; an abort loses fewer than this of each response.
_STREAM_INTERVAL = 16
_RESETS = 50


@dataclass
class _InProgress:
    """A response in progress."""

    pending: PendingRequest
    segment: DrawnSegment


class ColocatedEngine(InProcessEngine):
    """Implements `Engine` with vLLM's engine core in this process."""

    def __init__(
        self,
        config: ColocatedConfig,
        hf_config: PretrainedConfig,
        *,
        stop_tokens: Sequence[int],
        batch_size: int,
        max_tokens: int,
        dtype: torch.dtype,
    ) -> None:
        """All ranks call it. `max_tokens`: longest prompt with its response; `batch_size`: responses that run at a time."""
        super().__init__()
        self.config = config
        self.stop_tokens = tuple(stop_tokens)
        self._submitted = 0
        self._running: dict[str, _InProgress] = {}
        can_sleep = config.sleep and bool(vllm_module("vllm.platforms").current_platform.is_sleep_mode_available())
        with tempfile.TemporaryDirectory() as folder:
            hf_config.save_pretrained(folder)
            self._llm = start_vllm(
                config,
                model=folder,
                load_format="dummy",
                dtype=str(dtype).removeprefix("torch."),
                max_model_len=max_tokens,
                max_num_seqs=batch_size,
                enable_sleep_mode=can_sleep,
            )
        self._sleeping = SleepMode(self._llm, can_sleep=can_sleep)

    @classmethod
    def of(cls, context: EngineContext) -> Self:
        """The engine of a run."""
        return cls(
            context.config.colocated,
            context.hf_config,
            stop_tokens=context.stop_tokens,
            batch_size=context.config.batch_size,
            max_tokens=context.longest_prompt + context.config.max_response_tokens,
            dtype=context.dtype,
        )

    @torch.no_grad()
    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Give all weights to the model's loader, bucket by bucket; wakes the engine if it sleeps.

        Raises `RolloutError` if the model has no such tensor, or while responses are in progress.
        """
        if self._running:
            raise RolloutError(
                "new weights for the colocated engine while it draws responses",
                hint="abort them, update the weights, and continue them",
            )
        self.parameters = 0
        with self._sleeping.ended_by_weights():
            self._llm.collective_rpc("begin_bucket_update")
            for bucket in buckets(weights, self.config.bucket_mebibytes << 20, distributed.device()):
                self.parameters += sum(tensor.numel() for _, tensor in bucket)
                self._load(bucket)
            self._llm.collective_rpc("finish_bucket_update")
        self._forget_prefixes()
        self.version = version

    def _load(self, bucket: list[tuple[str, Tensor]]) -> None:
        try:
            self._llm.collective_rpc("load_bucket", args=(bucket,))
        except (KeyError, ValueError) as error:
            raise RolloutError(
                f"the engine's model does not take the weights: {one_line(error)}",
                hint="policy and engine must have the same config",
            ) from error

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        self._sleeping.refuse_requests()
        self._aborted = False
        try:
            for request in requests:
                self._submit(request)
            while self._running:
                yield from self._step()
        finally:
            self._stop()

    def completions(self) -> Generator[Completion | None, None, None]:
        """As `generate`, and None after each step of the engine; requests submitted meanwhile join those that run."""
        self._sleeping.refuse_requests()
        self._aborted = False
        try:
            while True:
                waiting, self._waiting = self._waiting, []
                for request in waiting:
                    self._submit(request)
                if self._running:
                    yield from self._step()
                yield None
        finally:
            self._stop()

    def replicas(self, requests: Sequence[Request]) -> dict[str, list[Completion]]:
        """This engine's answers, at the first of its ranks."""
        answers = list(self.generate(requests))
        if distributed.rank() % self.config.tensor:
            return {}
        return {f"the engine of rank {distributed.rank()}": answers}

    def abort(self) -> None:
        super().abort()
        self._stop()

    def rest(self) -> None:
        self._stop()
        self._sleeping.begin()

    def close(self) -> None:
        """Free the engine's memory and its process groups, not the trainer's."""
        self._stop()
        self._llm.engine_core.shutdown()
        vllm_module("vllm.distributed.parallel_state").destroy_model_parallel()

    def _submit(self, request: Request) -> None:
        vllm, refusals = vllm_module("vllm.sampling_params"), vllm_module("vllm.exceptions").VLLMClientError
        pending = PendingRequest.of(request, queue.Queue())  # the queue is unused: completions are returned
        name = str(self._submitted)
        self._submitted += 1
        try:
            sampling = vllm.SamplingParams(
                **vllm_sampling(pending, self.stop_tokens, stream_interval=_STREAM_INTERVAL),
                output_kind=vllm.RequestOutputKind.DELTA,
            )
            self._llm.add_request(name, vllm_module("vllm.inputs").tokens_input(pending.prompt), sampling)
        except (ValueError, refusals) as error:
            raise RolloutError(
                f"vLLM refuses a request of {len(pending.prompt)} tokens: {one_line(error)}",
                hint="the engine takes at most the longest prompt and rollout.max_response_tokens",
            ) from error
        self._running[name] = _InProgress(pending, DrawnSegment(self.version, {}))

    def _step(self) -> list[Completion]:
        """Draw one token more for each running request; returns the completions."""
        return [each for output in self._llm.step() if (each := self._taken(output)) is not None]

    def _taken(self, output: Any) -> Completion | None:
        response = self._running.get(output.request_id)
        if response is None:  # it was aborted
            return None
        (chunk,) = output.outputs
        response.segment.tokens.extend(chunk.token_ids)
        response.segment.logprob.extend(
            float(of_token[token].logprob) for token, of_token in zip(chunk.token_ids, chunk.logprobs, strict=True)
        )
        if not output.finished:
            return None
        del self._running[output.request_id]
        if chunk.finish_reason not in ("stop", "length"):
            raise RolloutError(f"vLLM ended a response with {chunk.finish_reason}", hint="see vLLM's messages above")
        response.pending.add(response.segment)
        completion: Completion = response.pending.completion(chunk.finish_reason)
        return completion

    def _stop(self) -> None:
        """End the running requests; after an abort they are kept with their tokens."""
        if not self._running:
            return
        self._llm.abort_request(list(self._running))
        for response in self._running.values():
            response.pending.add(response.segment)
            if self._aborted:
                self._unfinished.append(response.pending.unfinished())
        self._running.clear()

    def _forget_prefixes(self) -> None:
        """Drop the keys and values that earlier weights cached."""
        for _ in range(_RESETS):
            if self._llm.reset_prefix_cache():
                return
            self._llm.step()  # a batch that was running at an abort still holds its part
        raise RolloutError("vLLM's prefix cache, which old weights wrote, cannot be reset")
