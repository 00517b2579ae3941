"""The engine in this process: a Hugging Face model that decodes batches with a key-value cache.

Sampling inverts the cumulative distribution at one uniform number per token, drawn from the request's own generator: a
response depends on its seed and the weights, not on the other requests of its batch or on how many ranks generate.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PretrainedConfig

from megatron_fork.conversion import PublishedWeights
from megatron_fork.errors import RolloutError
from megatron_fork.experience import KeptTokens, VersionSpan, logprob_array, token_array
from megatron_fork.rollout.engine import Completion, InProcessEngine, PartialResponse, Request
from megatron_fork.rollout.engines import EngineContext
from megatron_fork.rollout.in_process.sampler import Sampler

# Finished sequences leave the batch when this fraction of it is idle: moving the cache costs about as much as a few steps.
_IDLE_SHARE = 0.25


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
        self.model = (
            AutoModelForCausalLM.from_config(hf_config, dtype=dtype, attn_implementation="sdpa").to(device).eval()
        )
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
        """Completions batch by batch, each as soon as it has finished."""
        self._aborted = False
        return (completion for completion in self._batches(requests) if completion is not None)

    def _batches(self, requests: Sequence[Request]) -> Iterator[Completion | None]:
        by_length = sorted(requests, key=lambda request: len(request.tokens))
        for start in range(0, len(by_length), self.batch_size):
            batch = by_length[start : start + self.batch_size]
            if self._aborted:
                self._unfinished += batch
                continue
            yield from self._decode(batch)

    def completions(self) -> Generator[Completion | None, None, None]:
        """Completions batch by batch, and None after each token; requests submitted meanwhile join the next batch."""
        self._aborted = False
        while True:
            waiting, self._waiting = self._waiting, []
            yield from self._batches(waiting)
            if not self._waiting:
                yield None

    @torch.no_grad()
    def _decode(self, requests: Sequence[Request]) -> Iterator[Completion | None]:
        prompts, mask, uniform = self._inputs(requests)
        limits = torch.tensor([r.max_tokens - len(r.begun.tokens) for r in requests], device=self.device)
        sampler = Sampler(requests, self.stop_tokens, self.device)
        tokens = torch.full((len(requests), int(limits.max())), self.pad_token, device=self.device)
        logprobs = torch.zeros(tokens.shape, device=self.device)
        active = torch.arange(len(requests), device=self.device)
        alive = torch.ones(len(requests), dtype=torch.bool, device=self.device)
        cache = DynamicCache(config=self.model.config)
        step_input = prompts
        experts = self._expert_record(requests) if self.records_experts else None
        sets = [request.begun.kept_copy() if request.reports_kept else None for request in requests]
        for step in range(tokens.shape[1]):
            if self._aborted:
                for row in active[alive].tolist():
                    drawn = self._drawn(requests[row], tokens[row, :step], logprobs[row, :step], sets[row])
                    self._unfinished.append(replace(requests[row], begun=drawn))
                return
            logits, scores = self._forward(step_input, mask, cache)
            if experts is not None:
                experts.add(step, active, scores)
            chosen, logprob, kept = sampler.draw(logits, active, uniform[active, step])
            if kept is not None:
                _add_sets(sets, active[alive], kept[alive])
            tokens[active[alive], step], logprobs[active[alive], step] = chosen[alive], logprob[alive]
            stopped = sampler.stops(chosen)
            ended = alive & (stopped | (step + 1 >= limits[active]))
            for place in ended.nonzero()[:, 0].tolist():
                row = int(active[place])
                drawn = self._drawn(requests[row], tokens[row, : step + 1], logprobs[row, : step + 1], sets[row])
                yield Completion(
                    number=requests[row].number,
                    tokens=drawn.tokens,
                    logprob=drawn.logprob,
                    finish_reason="stop" if stopped[place] else "length",
                    versions=drawn.versions,
                    experts=None if experts is None else experts.of(row, step + 1),
                    kept=drawn.kept,
                )
            alive &= ~ended
            if not alive.any():
                return
            mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)
            step_input = chosen[:, None]
            if (~alive).sum() > _IDLE_SHARE * len(active):
                kept = alive.nonzero()[:, 0]
                cache.batch_select_indices(kept)
                active, mask, step_input, alive = active[kept], mask[kept], step_input[kept], alive[kept]
            if not self._aborted:  # after an abort, None means that everything has stopped
                yield None

    def _drawn(self, request: Request, token_t: Tensor, logprob_t: Tensor, kept: KeptTokens | None) -> PartialResponse:
        """The request's partial response with the new tokens appended; `kept`: of all its tokens."""
        begun, start = request.begun, len(request.begun.tokens)
        versions = begun.versions
        if len(token_t):
            end = start + len(token_t)
            if versions and versions[-1].version == self.version:
                versions, start = versions[:-1], versions[-1].start
            versions = (*versions, VersionSpan(self.version, start, end))
        tokens, logprob = token_array(begun.tokens), logprob_array(begun.logprob)
        tokens.extend(token_t.tolist())
        logprob.extend(logprob_t.tolist())
        return PartialResponse(tokens, logprob, versions, kept)

    def _forward(self, tokens: Tensor, mask: Tensor, cache: DynamicCache) -> tuple[Tensor, Sequence[Tensor]]:
        """Logits after the last token, `[rows, vocab]`, and the routers' scores of each layer if experts are recorded."""
        backbone = self.model.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            **({"output_router_logits": True} if self.records_experts else {}),
        )
        logits = self.model.lm_head(backbone.last_hidden_state[:, -1])
        return logits, backbone.router_logits if self.records_experts else ()

    def _expert_record(self, requests: Sequence[Request]) -> RecordedExperts:
        config = self.model.config
        return RecordedExperts(
            [len(request.tokens) + len(request.begun.tokens) for request in requests],
            max(request.max_tokens for request in requests),
            layers=config.num_hidden_layers,
            topk=config.num_experts_per_tok,
        )

    def _inputs(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor, Tensor]:
        """Left-padded prompts `[requests, longest]`, their mask, and one uniform number for each token to draw."""
        prompts = [[*request.tokens, *request.begun.tokens] for request in requests]
        longest = max(map(len, prompts))
        rows = [[self.pad_token] * (longest - len(prompt)) + prompt for prompt in prompts]
        marks = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        most = max(request.max_tokens for request in requests)
        uniform = torch.zeros(len(requests), most)
        for row, request in enumerate(requests):
            drawn = torch.rand(most, generator=torch.Generator().manual_seed(request.seed))
            first = len(request.begun.tokens)
            uniform[row, : most - first] = drawn[first:]
        return (
            torch.tensor(rows, device=self.device),
            torch.tensor(marks, device=self.device),
            uniform.to(self.device),
        )


def _add_sets(sets: Sequence[KeptTokens | None], requests: Tensor, kept_rv: Tensor) -> None:
    """Append what the next token of each of `requests`, one a row of `kept_rv`, was drawn from."""
    whole = kept_rv.all(1).tolist()
    count_r = kept_rv.sum(1).tolist()
    parts = kept_rv.nonzero()[:, 1].cpu().split(count_r)
    for row, request in enumerate(requests.tolist()):
        mine = sets[request]
        if mine is not None:
            mine.append([] if whole[row] else parts[row].tolist())


class RecordedExperts:
    """Experts of every token that the model has read, `[requests, positions, layers, k]` int16, prompts padded left."""

    def __init__(self, prompt_lengths: Sequence[int], max_tokens: int, *, layers: int, topk: int) -> None:
        self._prompts = list(prompt_lengths)
        self._longest = max(prompt_lengths)
        self._chosen_rplk = torch.zeros(
            len(prompt_lengths), self._longest + max_tokens, layers, topk, dtype=torch.int16
        )

    def add(self, step: int, active: Tensor, scores: Sequence[Tensor]) -> None:
        """Record the forward pass of decoding step `step`.

        Args:
            step: 0 reads the prompts, each later one the token drawn before it.
            active: `[rows]`, the request of each row of the batch.
            scores: one tensor per layer, `[rows x tokens, experts]`; the experts with the largest k are chosen.

        """
        topk = self._chosen_rplk.shape[3]
        chosen = torch.stack([score.topk(topk).indices for score in scores], dim=1).to("cpu", torch.int16)
        chosen_rtlk = chosen.unflatten(0, (len(active), -1))
        first = 0 if step == 0 else self._longest + step - 1
        self._chosen_rplk[active.cpu(), first : first + chosen_rtlk.shape[1]] = chosen_rtlk

    def of(self, request: int, tokens: int) -> Tensor:
        """`[length, layers, k]` of a request that drew `tokens` tokens; the model never read the last one."""
        return self._chosen_rplk[request, self._longest - self._prompts[request] : self._longest + tokens - 1].clone()
