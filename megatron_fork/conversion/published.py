"""Weights by the names of the published checkpoints, for either form of experts in memory.

Published mixtures of experts have a tensor for each projection of each expert. In memory, transformers keeps all experts of
a layer in two tensors: `gate_up_proj` `[experts, 2 x width, d]` and `down_proj` `[experts, d, width]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

_PUBLISHED = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<expert>\d+)\.(?P<part>gate|up|down)_proj\.weight")
_FUSED = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<parts>gate_up|down)_proj")


class PublishedWeights(Mapping[str, Tensor]):
    """A view of `weights`: its tensors share memory with them, so that they can also be written into."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        if name in self._weights:
            return self._weights[name]
        match = _PUBLISHED.fullmatch(name)
        if match is None:
            raise KeyError(name)
        expert, part = int(match["expert"]), match["part"]
        fused = self._weights[f"{match['experts']}.{'down' if part == 'down' else 'gate_up'}_proj"]
        if expert >= len(fused):
            raise KeyError(name)
        if part == "down":
            return fused[expert]
        gate, up = fused[expert].chunk(2)
        return gate if part == "gate" else up

    def __contains__(self, name: object) -> bool:
        # The names first, since looking up a tensor may read it.
        return name in self._weights or super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        for name in self._weights:
            match = _FUSED.fullmatch(name)
            if match is None:
                yield name
                continue
            for expert in range(len(self._weights[name])):
                for part in match["parts"].split("_"):
                    yield f"{match['experts']}.{expert}.{part}_proj.weight"

    def __len__(self) -> int:
        return sum(1 for _ in self)
