"""What a weighting reads of the chosen tokens, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.errors import SelectionError
from megatron_fork.selection.config import SelectionConfig
from megatron_fork.selection.scores import TokenColumns


class Weighed(NamedTuple):
    """`weight`: float `[tokens]`, 0 leaves a token out; values at tokens that are not chosen are ignored."""

    weight: Tensor
    measures: Mapping[str, float] = {}
    """Numbers over all ranks that show what it did; they are logged under these names, after `selection/`."""


@dataclass(frozen=True)
class ChosenTokens:
    """This rank's tokens, `[tokens]` each, of which the weighting may read every column and weighs the chosen ones."""

    columns: TokenColumns
    chosen: Tensor
    """bool: what the choice of tokens and the weightings before have left."""
    highest: Callable[[float], Tensor] = field(repr=False)
    """`[tokens]` bool: the candidates with the highest entropies, of a share of them, cut by `selection.scope` and `rule`."""
    tie_tolerance: float = 0.0

    @property
    def config(self) -> SelectionConfig:
        return self.columns.config

    @property
    def entropy(self) -> Tensor:
        return self.columns.entropy

    def needed(self, name: str) -> Tensor:
        """One of the columns that `select_tokens` was given; every rank asks for it.

        Raises `SelectionError` if it was not given, or is NaN at a chosen token of any rank.
        """
        if name not in self.columns.others:
            given = ", ".join(self.columns.others) or "entropies alone"
            raise SelectionError(
                f"selection.weights=[{', '.join(self.config.weights)}] needs the column {name}, which is not given",
                hint=f"there are {given}: pass columns={{...}} to select_tokens, or set selection.weights=[]",
            )
        column = self.columns.others[name]
        is_bad = column[self.chosen].isnan().any().int().to(self.chosen.device)
        if column.is_floating_point() and collectives.all_reduce_max(is_bad, self.columns.group):
            raise SelectionError(
                f"selection.weights=[{', '.join(self.config.weights)}]: {name} is NaN at a chosen token",
                hint="look at the trajectories of that step, or leave them out",
            )
        return column

    def sums(self, *parts: Tensor) -> list[float]:
        """Each 0-d `part` summed over the ranks that share the mini-batch, in float64: one collective."""
        stacked = torch.stack([part.double() for part in parts])
        return collectives.all_reduce_sum(stacked, self.columns.group).tolist()

    def shares(self, **flags: Tensor) -> dict[str, float]:
        """For each `[tokens]` bool, the fraction of the chosen tokens of all ranks that have it."""
        *found, chosen = self.sums(*((each & self.chosen).sum() for each in flags.values()), self.chosen.sum())
        return {name: count / max(1.0, chosen) for name, count in zip(flags, found, strict=True)}
