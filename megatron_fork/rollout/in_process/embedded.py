"""The engine in this process: a Hugging Face model that decodes batches with a key-value cache.

Sampling inverts the cumulative distribution at one uniform number per token, drawn from the request's own generator: a
response depends on its seed and the weights, not on the other requests of its batch or on how many ranks generate.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Self

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from megatron_fork.conversion import PublishedWeights
from megatron_fork.errors import RolloutError
from megatron_fork.rollout.engine import Completion, InProcessEngine, Request
from megatron_fork.rollout.engines import EngineContext
from megatron_fork.rollout.in_process.batch import Batch
from megatron_fork.rollout.in_process.linear import use_fast_linear

# Waiting requests join the batch when this fraction of it is free: to read a prompt costs about as much as a few steps.
_FREE_SHARE = 0.25


class EmbeddedEngine(InProcessEngine):
    """Implements `Engine` for models that fit beside the policy."""

    def __init__(
        self,
        hf_config: PretrainedConfig,
        *,
        stop_tokens: Sequence[int],
        pad_token: int,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
        records_experts: bool = False,
    ) -> None:
        super().__init__()
        # Its first weights are drawn, and replaced by the policy's before anything is asked for: on a GPU that takes no time.
        with device:
            model = AutoModelForCausalLM.from_config(hf_config, dtype=dtype, attn_implementation="sdpa")
        self.model = model.to(device).eval()
        use_fast_linear(self.model)
        self.stop_tokens = tuple(stop_tokens)
        self.pad_token = pad_token
        self.batch_size = batch_size
        self.device = device
        self.records_experts = records_experts
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())

    @classmethod
    def of(cls, context: EngineContext) -> Self:
        """The engine of a run."""
        return cls(
            context.hf_config,
            stop_tokens=context.stop_tokens,
            pad_token=context.pad_token,
            batch_size=context.config.batch_size,
            device=context.device,
            dtype=context.dtype,
            records_experts=context.records_experts,
        )

    @torch.no_grad()
    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy every weight into the model; raises `RolloutError` unless all of its tensors are given."""
        parameters = PublishedWeights(dict(self.model.named_parameters()))
        missing = set(parameters)
        for name, tensor in weights:
            if name not in parameters:
                raise RolloutError(
                    f"the engine's model has no tensor {name}", hint="policy and engine must have the same config"
                )
            parameters[name].copy_(tensor)
            missing.discard(name)
        if missing:
            raise RolloutError(
                f"the weight update lacks {len(missing)} tensors, the first is {min(missing)}",
                hint="the family's table of tensor names is incomplete",
            )
        self.version = version

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Completions as they finish; the shortest prompts first, `batch_size` at a time."""
        self._aborted = False
        return (completion for completion in self._draw(requests) if completion is not None)

    def completions(self) -> Generator[Completion | None, None, None]:
        """Completions as they finish, and None after each token; requests submitted meanwhile join those that are drawn."""
        self._aborted = False
        while True:
            yield from self._draw(())
            yield None

    def _draw(self, requests: Sequence[Request]) -> Iterator[Completion | None]:
        """Draw `requests`, and those that are submitted meanwhile, until none is left or they are aborted."""
        batch = Batch(
            self.model,
            stop_tokens=self.stop_tokens,
            pad_token=self.pad_token,
            records_experts=self.records_experts,
        )
        waiting = list(requests)
        while True:
            if self._waiting:
                waiting, self._waiting = waiting + self._waiting, []
            if self._aborted:
                self._unfinished += batch.unfinished(self.version) + waiting
                return
            free = self.batch_size - len(batch)
            if waiting and (not batch or free >= _FREE_SHARE * self.batch_size):
                waiting.sort(key=lambda request: len(request.tokens))
                batch.add(waiting[:free])
                del waiting[:free]
            if not batch:
                return
            yield from batch.step(self.version)
            if not self._aborted and (batch or waiting):  # after an abort, None means that everything has stopped
                yield None
