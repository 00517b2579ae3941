"""How the entropies of the same responses change over checkpoints, beside those of the base and of the final model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_fork.analysis.counting import Array, Sums
from megatron_fork.analysis.patterns.entropy import PERCENTILES

BINS = 20
"""Of 5 percentiles of the base model's entropy each."""
PAPER_OVERLAP = {"base_of_final": 0.8667}
"""Overlap of the top 20 % of the final model with the base model's, Qwen3-14B (arXiv 2506.01939)."""


@dataclass(frozen=True)
class Stage:
    """The responses under one checkpoint; entropies in nats."""

    name: str
    mean: float
    percentiles: dict[float, float]
    overlap_base: float
    """Share of the tokens that this checkpoint selects, which the base model selects too."""
    overlap_final: float
    selected: int
    change: list[float]
    """`[BINS]`: mean entropy minus the base model's, of tokens in each bin of the base model's entropy; NaN without tokens."""


@dataclass(frozen=True)
class Evolution:
    """The stages in the order that was given: the first is the base model, the last the final one."""

    stages: list[Stage]
    tokens: int
    ratio: float


class EvolutionSums:
    """Takes the entropies of one checkpoint at a time; those of the base model and two selections are kept, 6 bytes a token."""

    def __init__(self, base_t: Array, final_t: Array, select: Callable[[Array], Array], ratio: float) -> None:
        """`select`: which tokens training would select by these entropies, bool."""
        self._base, self._select, self.ratio = base_t, select, ratio
        self._selected = {"base": select(base_t), "final": select(final_t)}
        self._bin = bins_of(base_t)

    def stage(self, name: str, entropy_t: Array) -> Stage:
        chosen = self._select(entropy_t)
        count = max(1, int(chosen.sum()))
        change = Sums(BINS)
        change.add(self._bin, entropy_t.astype(np.float64) - self._base)
        values = (
            np.percentile(entropy_t.astype(np.float64), PERCENTILES) if len(entropy_t) else [np.nan] * len(PERCENTILES)
        )
        return Stage(
            name=name,
            mean=float(entropy_t.mean(dtype=np.float64)) if len(entropy_t) else float("nan"),
            percentiles={float(p): float(value) for p, value in zip(PERCENTILES, values, strict=True)},
            overlap_base=float((chosen & self._selected["base"]).sum() / count),
            overlap_final=float((chosen & self._selected["final"]).sum() / count),
            selected=int(chosen.sum()),
            change=change.mean.tolist(),
        )


def bins_of(base_t: Array) -> Array:
    """`[tokens]` uint8: which twentieth of the tokens, ordered by entropy, each is in; equal ones in their order."""
    rank = np.empty(len(base_t), dtype=np.int64)
    rank[np.argsort(base_t, kind="stable")] = np.arange(len(base_t))
    return (rank * BINS // max(1, len(base_t))).astype(np.uint8)


def evolution_record(found: Evolution) -> dict[str, Any]:
    """The evolution as JSON."""
    stages = [
        {**vars(stage), "percentiles": {f"{p:g}": value for p, value in stage.percentiles.items()}}
        for stage in found.stages
    ]
    return {"tokens": found.tokens, "ratio": found.ratio, "paper": PAPER_OVERLAP, "stages": stages}
