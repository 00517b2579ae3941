"""Experts of every token that the embedded engine's model has read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RecordedExperts:
    """What the routers chose for the requests of a batch, `[requests, positions, layers, k]` int16."""

    def __init__(self, *, layers: int, topk: int) -> None:
        self._topk = topk
        self._chosen_rplk = torch.zeros(0, 0, layers, topk, dtype=torch.int16)

    def keep(self, requests: Sequence[int]) -> None:
        """Forget all but `requests`, which get the numbers of their places in it."""
        self._chosen_rplk = self._chosen_rplk[list(requests)]

    def add(self, row_of: Sequence[int], scores: Sequence[Tensor], *, ceiling: int) -> None:
        """Append requests, and what was chosen for their prompts.

        Args:
            row_of: for each request the row of `scores` that is its prompt's.
            scores: one tensor per layer, `[prompts, tokens, experts]`; the experts with the largest k are chosen. Empty if
                nothing was read.
            ceiling: the largest number of tokens that a request reads.

        """
        old = self._chosen_rplk
        positions = max(ceiling, old.shape[1])
        self._chosen_rplk = torch.zeros(len(old) + len(row_of), positions, *old.shape[2:], dtype=torch.int16)
        self._chosen_rplk[: len(old), : old.shape[1]] = old
        if scores:
            chosen_ptlk = self._chosen(scores)
            self._chosen_rplk[len(old) :, : chosen_ptlk.shape[1]] = chosen_ptlk[list(row_of)]

    def add_step(self, requests: Tensor, position: Tensor, scores: Sequence[Tensor]) -> None:
        """Record what was chosen for the token that each of `requests` read at its `position`; scores `[rows, experts]`."""
        self._chosen_rplk[requests.cpu(), position.cpu()] = self._chosen(scores)

    def of(self, request: int, tokens: int) -> Tensor:
        """`[tokens, layers, k]` of a request that read `tokens` tokens."""
        return self._chosen_rplk[request, :tokens].clone()

    def _chosen(self, scores: Sequence[Tensor]) -> Tensor:
        return torch.stack([score.topk(self._topk).indices for score in scores], dim=-2).to("cpu", torch.int16)
