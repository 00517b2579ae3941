"""Sums of entropy over groups of tokens, added up part by part, so that memory does not grow with the traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_fork.analysis.counting import Array, Sums
from megatron_fork.analysis.tokens import visible_label
from megatron_fork.traces import Traces

RELATIVE_BINS = 20
_LONGEST = 32  # bins of powers of two hold responses of up to 2**31 tokens


@dataclass(frozen=True)
class TokenMean:
    """How often a token occurs in the responses, and its mean entropy in nats."""

    token: int
    text: str
    count: int
    mean: float


class TokenSums:
    """Sums by token id, with a text of each; memory grows with the tokens that there are, whatever their ids."""

    def __init__(self) -> None:
        self.sums = Sums(1)
        self._texts: dict[int, str] = {}
        self._places: dict[int, int] = {}

    def add(self, part: Traces, token_t: Array, entropy_t: Array) -> None:
        present, first, inverse = np.unique(token_t, return_index=True, return_inverse=True)
        new = [
            (int(token), int(place)) for token, place in zip(present, first, strict=True) if token not in self._texts
        ]
        texts = part.entries("token_texts", [place for _, place in new]) if new else ()
        for (token, _), text in zip(new, texts, strict=True):
            self._places[token] = len(self._places)
            self._texts[token] = f"<{token}>" if text is None else text.decode("utf-8", "surrogateescape")
        places = np.array([self._places[token] for token in present.tolist()], dtype=np.int64)
        self.sums.add(places[inverse], entropy_t)

    def ranked(self, minimum_count: int) -> list[TokenMean]:
        """The tokens that occur at least so often, highest mean entropy first, equal ones by id."""
        often = np.flatnonzero(self.sums.count >= max(1, minimum_count))
        mean, ids = self.sums.mean[often], np.array(list(self._places), dtype=np.int64)[often]
        return [
            TokenMean(
                int(ids[at]), visible_label(self._texts[int(ids[at])]), int(self.sums.count[often[at]]), float(mean[at])
            )
            for at in np.lexsort((ids, -mean))
        ]

    @property
    def distinct(self) -> int:
        return len(self._places)


class PositionSums:
    """Sums by place in the response: `relative`, 20 equal parts of it; `absolute`, token 0, 1, 2-3, 4-7, 8-15 and so on."""

    def __init__(self) -> None:
        self.relative, self.absolute = Sums(RELATIVE_BINS), Sums(_LONGEST)

    def add(self, position_t: Array, length_t: Array, entropy_t: Array) -> None:
        """`position_t`: of each token in its response, from 0; `length_t`: tokens of that response."""
        self.relative.add(position_t * RELATIVE_BINS // np.maximum(length_t, 1), entropy_t)
        self.absolute.add(np.frexp(position_t.astype(np.float64))[1], entropy_t)


def positions(lengths: Sequence[int] | Array) -> tuple[Array, Array]:
    """`[response tokens]` each: a token's position in its response, and that response's length."""
    lengths = np.asarray(lengths, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths), np.repeat(lengths, lengths)
