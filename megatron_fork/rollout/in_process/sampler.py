"""Sampling in the embedded engine: one uniform number per token, from what temperature, top-k, top-p and min-p leave."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_fork.rollout.engine import Request
from megatron_fork.serving import scale_by_entropy
from megatron_fork.vocab_parallel import token_statistics


class Sampler:
    """Samples tokens for the requests of one batch; `rows` in its methods selects some of them."""

    def __init__(self, requests: Sequence[Request], stop_tokens: Sequence[int], device: torch.device) -> None:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device)

        self.temperature = column([request.temperature for request in requests])
        self.top_p = column([request.top_p for request in requests])
        self.top_k = torch.tensor([request.top_k for request in requests], device=device)
        self.min_p = column([request.min_p for request in requests])
        self.reports_kept = torch.tensor([request.reports_kept for request in requests], device=device)
        self._reports_any = any(request.reports_kept for request in requests)
        plain = [0.0, 1.0, 1.0]
        self.by_entropy = torch.tensor(
            [plain if r.entropy_temperature is None else r.entropy_temperature.parameters for r in requests],
            device=device,
        )
        self._has_entropy = any(request.entropy_temperature is not None for request in requests)
        self._truncates = any(r.top_p < 1.0 or r.top_k > 0 or r.min_p > 0.0 for r in requests)
        self.stop_tokens = torch.tensor(list(stop_tokens), dtype=torch.long, device=device)

    def draw(self, logits: Tensor, rows: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(token, its log-prob, kept) for each row of `[rows, vocab]` logits; temperature 0 takes the most likely token.

        The log-prob is of the full softmax, whatever is left to be drawn; for a request that reports what it keeps, it is of
        the softmax over that. `kept` is bool `[rows, vocab]`, None if no request reports it; a greedy row keeps its token.
        """
        greedy = self.temperature[rows] == 0.0
        scaled = logits.float() / torch.where(greedy, 1.0, self.temperature[rows])[:, None]
        if self._has_entropy:
            scaled = scale_by_entropy(scaled, self.by_entropy[rows])
        # In float64: a float32 sum over a large vocabulary would misplace rare tokens.
        probability = scaled.double().softmax(-1)
        if self._truncates:
            probability = _truncated(probability, self.top_k[rows], self.top_p[rows], self.min_p[rows])
        cumulative = probability.cumsum(-1)
        threshold = uniform.double() * cumulative[:, -1]
        drawn = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
        chosen = torch.where(greedy, scaled.argmax(-1), drawn)
        kept = None
        if self._reports_any:
            greedily = torch.zeros_like(probability, dtype=torch.bool).scatter_(1, chosen[:, None], True)
            kept = torch.where(greedy[:, None], greedily, probability > 0.0) | ~self.reports_kept[rows, None]
            scaled = scaled.masked_fill(~kept, -torch.inf)
        return chosen, token_statistics(scaled, chosen).logprob, kept

    def stops(self, chosen: Tensor) -> Tensor:
        """Bool of `chosen`'s shape: the token ends its response."""
        return torch.isin(chosen, self.stop_tokens)


def _truncated(probability: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Zero outside the `top_k` most likely tokens (0: all), outside the fewest of them that hold `top_p` of their sum, and
    below `min_p` times the largest.
    """
    ordered, order = probability.sort(-1, descending=True)
    place = torch.arange(ordered.shape[-1], device=ordered.device)
    ordered = torch.where((top_k == 0)[:, None] | (place < top_k[:, None]), ordered, 0.0)
    before = ordered.cumsum(-1) - ordered
    ordered = torch.where(before < top_p.double()[:, None] * ordered.sum(-1, keepdim=True), ordered, 0.0)
    ordered = torch.where(ordered >= min_p.double()[:, None] * ordered[:, :1], ordered, 0.0)
    return torch.zeros_like(probability).scatter(-1, order, ordered)
