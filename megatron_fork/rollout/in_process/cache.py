"""The embedded engine's cache of keys and values: each row from position 0 on, in memory that is written in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

# Positions that are allocated ahead: a quarter of those that are needed, and a few for short responses.
_AHEAD_SHARE = 0.25
_AHEAD = 64


class KeyValueCache:
    """Keys and values of the tokens that each row of a batch has read; Hugging Face's models write and read it by `update`.

    Rows come by `add` and leave by `keep`. A decoding step is `begin_step`, and one `update` by every layer.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._layers: list[tuple[Tensor, Tensor]] = []
        """Keys and values of each layer, `[rows that there is room for, positions, heads, width]`."""
        self._lengths: list[int] = []
        self._ceiling = 0
        self._written_r = torch.empty(0, dtype=torch.long, device=device)
        """Where the token of this step is written, in the rows and positions of a layer as one dimension."""

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values."""
        return sum(tensor.nbytes for pair in self._layers for tensor in pair)

    def add(self, read: DynamicCache | None, row_of: Sequence[int], lengths: Sequence[int], *, ceiling: int) -> None:
        """Append rows: row i has the first `lengths[i]` positions of row `row_of[i]` of `read`, which is None if all are 0.

        `ceiling`: the largest number of tokens that one of them will have.
        """
        old = len(self._lengths)
        self._lengths += lengths
        self._ceiling = max(self._ceiling, ceiling)
        self._make_room(old)
        if read is None:
            return
        index, longest = torch.tensor(row_of, device=self.device), max(lengths)
        for number, layer in enumerate(read.layers):
            for mine, theirs in zip(self._layer(number, layer.keys), (layer.keys, layer.values), strict=True):
                mine[old : len(self._lengths), :longest] = theirs.transpose(1, 2)[index, :longest]

    def keep(self, order: Sequence[int]) -> None:
        """Row `order[i]` becomes row i, for every row that stays; only rows that get another place are moved."""
        longest = max(self._lengths)
        places = [place for place, row in enumerate(order) if row != place]
        if places:
            to = torch.tensor(places, device=self.device)
            source = torch.tensor([order[place] for place in places], device=self.device)
            for tensor in (tensor for pair in self._layers for tensor in pair):
                tensor[to, :longest] = tensor[source, :longest]
        self._lengths = [self._lengths[row] for row in order]

    def begin_step(self) -> tuple[Tensor, Tensor]:
        """Make room for one more token of each row; its position `[rows]`, and bool `[rows, positions]`: what it may see."""
        position_r = torch.tensor(self._lengths, device=self.device)
        self._lengths = [length + 1 for length in self._lengths]
        self._make_room(len(self._lengths))
        room = self._layers[0][0].shape[1] if self._layers else self._positions()
        self._written_r = torch.arange(len(self._lengths), device=self.device) * room + position_r
        return position_r, torch.arange(max(self._lengths), device=self.device) <= position_r[:, None]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, **_: object) -> tuple[Tensor, Tensor]:
        """Write the step's keys and values, `[rows, heads, 1, width]`; returns those of all positions up to the longest.

        Some versions of transformers also give what their models were called with, which is of no use here.
        """
        mine = self._layer(layer_idx, keys)
        rows, longest = len(self._lengths), max(self._lengths)
        for tensor, new in zip(mine, (keys, values), strict=True):
            tensor.flatten(0, 1).index_copy_(0, self._written_r, new[:, :, 0])
        of_keys, of_values = (tensor[:rows, :longest].transpose(1, 2) for tensor in mine)
        return of_keys, of_values

    def _layer(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        if number == len(self._layers):
            self._layers.append(self._zeros(like.shape[1], like))
        return self._layers[number]

    def _zeros(self, heads: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Not empty: what a token may not see is multiplied by 0, and must be finite for it."""
        shape = (len(self._lengths), self._positions(), heads, like.shape[-1])
        return like.new_zeros(shape), like.new_zeros(shape)

    def _positions(self) -> int:
        longest = max(self._lengths)
        return max(longest, min(self._ceiling, int(longest * (1.0 + _AHEAD_SHARE)) + _AHEAD))

    def _make_room(self, filled: int) -> None:
        """Other memory, if what there is does not hold all rows; the first `filled` rows have something."""
        if not self._layers:
            return
        rows, positions = self._layers[0][0].shape[:2]
        if rows >= len(self._lengths) and positions >= max(self._lengths):
            return
        positions = min(positions, self._positions())  # fewer, where long rows have left
        for number, pair in enumerate(self._layers):
            fitting = self._zeros(pair[0].shape[2], pair[0])
            for new, old in zip(fitting, pair, strict=True):
                new[:filled, :positions] = old[:filled, :positions]
            self._layers[number] = fitting
