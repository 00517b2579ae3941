"""The figure of the lenses: overlap and rank correlation of every pair."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from megatron_fork.analysis.colours import PALETTE
from megatron_fork.analysis.lenses.results import Lenses


def figures_of(found: Lenses) -> dict[str, Callable[[], Figure]]:
    """Name and drawing; none where no two lenses have tokens in common."""
    return {"lenses_agreement": partial(draw_agreement, found)} if found.agreements() else {}


def draw_agreement(found: Lenses) -> Figure:
    """Bars with intervals, with what unrelated lenses would have."""
    pairs = found.agreements()
    names = [f"{first}, {second}" for first, second in pairs]
    figure = Figure(figsize=(7.5, 1.2 + 0.35 * len(pairs)), layout="constrained")
    overlap, correlation = figure.subplots(1, 2, sharey=True)
    for row, pair in enumerate(pairs.values()):
        for axes, value, (low, high), colour in (
            (overlap, pair.jaccard, pair.jaccard_interval, "orange"),
            (correlation, pair.spearman, pair.spearman_interval, "blue"),
        ):
            axes.barh(row, value, color=PALETTE[colour][0], height=0.6)
            axes.plot([low, high], [row, row], color=PALETTE["ink"][0], linewidth=1)
        overlap.plot([pair.by_chance] * 2, [row - 0.4, row + 0.4], color=PALETTE["muted"][0], linestyle=":")
    overlap.set_yticks(range(len(names)), names)
    overlap.invert_yaxis()
    overlap.set(xlabel=f"overlap of the top {100 * found.share:g} % (dotted: by chance)", xlim=(0, None))
    overlap.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    correlation.set(xlabel="rank correlation", xlim=(-1, 1))
    correlation.axvline(0.0, color=PALETTE["muted"][0], linewidth=0.8)
    return figure
