"""The engine in this process: a Hugging Face model that decodes batches with a key-value cache.

Sampling inverts the cumulative distribution at one uniform number a token, drawn from the request's own generator: a
response depends on its seed and the weights, not on what it shares a batch with, nor on how many ranks generate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PretrainedConfig

from megatron_fork.checkpoint import PublishedWeights
from megatron_fork.errors import RolloutError
from megatron_fork.rollout.engine import Completion, Request
from megatron_fork.rollout.recorded_experts import RecordedExperts
from megatron_fork.vocab_parallel import token_statistics

# Finished sequences leave the batch when this share of it is idle: moving the cache costs about as much as a few steps.
_IDLE_SHARE = 0.25


class EmbeddedEngine:
    """Implements `Engine` for models that fit beside the policy."""

    def __init__(
        self,
        hf_config: PretrainedConfig,
        *,
        stop_token: int,
        pad_token: int,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
        records_experts: bool = False,
    ) -> None:
        self.model = (
            AutoModelForCausalLM.from_config(hf_config, dtype=dtype, attn_implementation="sdpa").to(device).eval()
        )
        self.stop_token = stop_token
        self.pad_token = pad_token
        self.batch_size = batch_size
        self.device = device
        self.records_experts = records_experts
        self.version = -1
        self._aborted = False

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @torch.no_grad()
    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy every weight in; raises `RolloutError` unless all of the model's tensors were given."""
        parameters = PublishedWeights(dict(self.model.named_parameters()))
        missing = set(parameters)
        for name, tensor in weights:
            if name not in parameters:
                raise RolloutError(
                    f"the engine's model has no tensor {name}", hint="policy and engine must share a config"
                )
            parameters[name].copy_(tensor)
            missing.discard(name)
        if missing:
            raise RolloutError(
                f"the weight update lacks {len(missing)} tensors, first {min(missing)}", hint="the bridge is incomplete"
            )
        self.version = version

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Completions batch by batch, each as soon as it has finished."""
        self._aborted = False
        by_length = sorted(requests, key=lambda request: len(request.tokens))
        for start in range(0, len(by_length), self.batch_size):
            yield from self._decode(by_length[start : start + self.batch_size])

    @torch.no_grad()
    def _decode(self, requests: Sequence[Request]) -> Iterator[Completion]:
        prompts, mask, uniform = self._inputs(requests)
        limits = torch.tensor([request.max_tokens for request in requests], device=self.device)
        temperatures = torch.tensor([request.temperature for request in requests], device=self.device)
        tokens = torch.full((len(requests), int(limits.max())), self.pad_token, device=self.device)
        logprobs = torch.zeros(tokens.shape, device=self.device)
        active = torch.arange(len(requests), device=self.device)
        alive = torch.ones(len(requests), dtype=torch.bool, device=self.device)
        cache = DynamicCache(config=self.model.config)
        step_input = prompts
        experts = self._expert_record(requests) if self.records_experts else None
        for step in range(tokens.shape[1]):
            if self._aborted:
                return
            logits, scores = self._forward(step_input, mask, cache)
            if experts is not None:
                experts.add(step, active, scores)
            chosen, logprob = _sample(logits, temperatures[active], uniform[active, step])
            tokens[active[alive], step], logprobs[active[alive], step] = chosen[alive], logprob[alive]
            stopped = chosen == self.stop_token
            ended = alive & (stopped | (step + 1 >= limits[active]))
            for place in ended.nonzero()[:, 0].tolist():
                row = int(active[place])
                yield Completion(
                    number=requests[row].number,
                    tokens=tuple(tokens[row, : step + 1].tolist()),
                    logprob=tuple(logprobs[row, : step + 1].tolist()),
                    finish_reason="stop" if stopped[place] else "length",
                    weight_version=self.version,
                    experts=None if experts is None else experts.of(row, step + 1),
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

    def _forward(self, tokens: Tensor, mask: Tensor, cache: DynamicCache) -> tuple[Tensor, Sequence[Tensor]]:
        """Logits after the last token, `[rows, vocab]`, and where they are recorded the routers' scores of each layer."""
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
            [len(request.tokens) for request in requests],
            max(request.max_tokens for request in requests),
            layers=config.num_hidden_layers,
            topk=config.num_experts_per_tok,
        )

    def _inputs(self, requests: Sequence[Request]) -> tuple[Tensor, Tensor, Tensor]:
        """Left-padded prompts `[requests, longest]`, their mask, and one uniform number a token to come."""
        longest = max(len(request.tokens) for request in requests)
        rows = [[self.pad_token] * (longest - len(request.tokens)) + list(request.tokens) for request in requests]
        marks = [[0] * (longest - len(request.tokens)) + [1] * len(request.tokens) for request in requests]
        uniform = torch.stack(
            [
                torch.rand(max(r.max_tokens for r in requests), generator=torch.Generator().manual_seed(request.seed))
                for request in requests
            ]
        )
        return (
            torch.tensor(rows, device=self.device),
            torch.tensor(marks, device=self.device),
            uniform.to(self.device),
        )

    def abort(self) -> None:
        """Take no further token; unfinished requests are given up."""
        self._aborted = True

    def health(self) -> bool:
        return self.version >= 0

    def close(self) -> None:
        """Nothing outlives the object."""


def _sample(logits: Tensor, temperature: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """(token, its log-prob) for each row of `[rows, vocab]` logits; temperature 0 takes the most likely token."""
    greedy = temperature == 0.0
    scaled = logits.float() / torch.where(greedy, 1.0, temperature)[:, None]
    # Float64, since a float32 sum over a large vocabulary would misplace rare tokens.
    cumulative = scaled.double().softmax(-1).cumsum(-1)
    threshold = uniform.double() * cumulative[:, -1]
    drawn = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    chosen = torch.where(greedy, scaled.argmax(-1), drawn)
    return chosen, token_statistics(scaled, chosen).logprob
