"""Which experts the embedded engine sent each token to, kept while a batch is decoded: what routing replay replays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RecordedExperts:
    """Choices of every token that the model has read, `[requests, positions, layers, k]` int16, prompts padded left."""

    def __init__(self, prompt_lengths: Sequence[int], max_tokens: int, *, layers: int, topk: int) -> None:
        self._prompts = list(prompt_lengths)
        self._longest = max(prompt_lengths)
        self._chosen_rplk = torch.zeros(
            len(prompt_lengths), self._longest + max_tokens, layers, topk, dtype=torch.int16
        )

    def add(self, step: int, active: Tensor, scores: Sequence[Tensor]) -> None:
        """Keep a forward of decoding step `step`.

        Args:
            step: 0 reads the prompts, each later one the token drawn before it.
            active: `[rows]`, the requests that the rows of the batch belong to.
            scores: a tensor a layer, `[rows x tokens, experts]`, whose largest k are chosen.

        """
        topk = self._chosen_rplk.shape[3]
        chosen = torch.stack([score.topk(topk).indices for score in scores], dim=1).to("cpu", torch.int16)
        chosen_rtlk = chosen.unflatten(0, (len(active), -1))
        first = 0 if step == 0 else self._longest + step - 1
        self._chosen_rplk[active.cpu(), first : first + chosen_rtlk.shape[1]] = chosen_rtlk

    def of(self, request: int, tokens: int) -> Tensor:
        """`[length, layers, k]` of a request that drew `tokens` tokens, the last of which was never read."""
        return self._chosen_rplk[request, self._longest - self._prompts[request] : self._longest + tokens - 1].clone()
