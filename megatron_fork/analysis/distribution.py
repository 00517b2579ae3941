"""The distribution of the entropy of traced tokens, with the threshold of the selection.

Entropy spans decades, and is nearly zero for most tokens. Bins are even steps of its logarithm; values too small for a fork,
including zero and negative rounding errors, have a bin of their own at the left end.
"""

from __future__ import annotations

import math

import numpy
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

from megatron_fork.analysis.colours import PALETTE
from megatron_fork.analysis.figures import Drawing, Size, finished, is_wide, log_ticks, new_figure, number_text
from megatron_fork.analysis.run_record import RunRecord

STONE, ORANGE, BLUE, INK = (PALETTE[name][0] for name in ("stone", "orange", "blue", "ink"))

# In nats: entropies below `LOWEST` are in the first bin, those below `DECIDED` are counted in the caption.
LOWEST, DECIDED = 1e-4, 1e-2
BINS_PER_DECADE = 8
# Place of the first bin, in decades below `LOWEST`.
FIRST = (-0.55, -0.1)


def draw_distribution(record: RunRecord, size: Size) -> Drawing | None:
    traces = record.traces.all()
    entropy = numpy.array([value for trace in traces for value in trace.entropy], dtype=float)
    selected = numpy.array([value for trace in traces for value in trace.selected], dtype=bool)
    finite = numpy.isfinite(entropy)
    if not finite.any():
        return None
    edges = bin_edges(float(entropy[finite].max()))
    figure, axes = new_figure("entropy of a response token (nats)", "traced tokens, log count", size)
    # Bars cannot be stacked on a log axis: both start at the axis, with the selected ones in front.
    for values, colour, label in (
        (entropy[finite], STONE, "all traced tokens"),
        (entropy[finite & selected], ORANGE, "carried gradient"),
    ):
        first, *others = counts(values, edges)
        places = numpy.log10(edges)
        axes.stairs(others, places, fill=True, color=colour, label=label, baseline=0.5)
        axes.stairs([first], places[0] + numpy.array(FIRST), fill=True, color=colour, baseline=0.5)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    log_ticks(axes)
    label_decades(axes, edges)
    mark_thresholds(axes, record, wide=is_wide(size))
    return finished(figure, in_words(entropy, len(traces)))


def bin_edges(highest: float) -> numpy.ndarray:
    """Return edges in even steps of their logarithm, from `LOWEST` to just above the highest entropy."""
    bins = max(math.floor(math.log10(max(highest, DECIDED) / LOWEST) * BINS_PER_DECADE) + 1, 1)
    return LOWEST * 10 ** (numpy.arange(bins + 1) / BINS_PER_DECADE)


def counts(entropy: numpy.ndarray, edges: numpy.ndarray) -> numpy.ndarray:
    """Return how many entropies are below all edges, then how many in each bin: [bins + 1]."""
    places = numpy.searchsorted(edges, entropy, side="right")
    # Rounding may leave the highest entropy slightly above the last edge.
    return numpy.bincount(numpy.minimum(places, len(edges) - 1), minlength=len(edges))


def label_decades(axes: Axes, edges: numpy.ndarray) -> None:
    low, high = math.log10(edges[0]), math.log10(edges[-1])
    decades = list(range(round(low) + 1, math.floor(high) + 1))
    axes.xaxis.set_major_locator(FixedLocator([low + sum(FIRST) / 2, *decades]))
    axes.xaxis.set_major_formatter(
        FixedFormatter([f"< {LOWEST:g}", *(number_text(10.0**decade) for decade in decades)])
    )
    axes.xaxis.set_minor_formatter(NullFormatter())


def place_of(entropy: float) -> float:
    """Return the place of an entropy on the axis."""
    return math.log10(entropy) if entropy >= LOWEST else math.log10(LOWEST) + sum(FIRST) / 2


def in_words(entropy: numpy.ndarray, trajectories: int) -> str:
    finite = entropy[numpy.isfinite(entropy)]
    percentile = number_text(float(f"{numpy.percentile(finite, 80):.2g}"))
    sentences = [
        f"{len(finite):,} tokens of {trajectories:,} trajectories: {100 * numpy.mean(finite < DECIDED):.1f} % are below "
        f"{DECIDED:g} nats, and the 80th percentile is {percentile} nats."
    ]
    if len(entropy) > len(finite):
        sentences.append(f"{len(entropy) - len(finite):,} tokens whose entropy is not finite are left out.")
    return " ".join(sentences)


def mark_thresholds(axes: Axes, record: RunRecord, *, wide: bool) -> None:
    """Mark the threshold of the last traced step by a line, and the range over all traced steps by a band."""
    series = record.metrics.series("train", "selection/threshold")
    traced = numpy.isin(series.steps, list(record.traces.by_step)) & numpy.isfinite(series.values)
    if not traced.any():
        return
    steps, values = series.steps[traced], series.values[traced]
    low, high = float(values.min()), float(values.max())
    label = f"threshold, step {steps[-1]}: {values[-1]:.2f} nats"
    axes.axvline(place_of(values[-1]), color=INK, linestyle="--", linewidth=1.2, label=label)
    if low < high:
        band = f"{'thresholds, ' if wide else ''}traced steps: {low:.2f} to {high:.2f} nats"
        axes.axvspan(place_of(low), place_of(high), color=BLUE, alpha=0.18, linewidth=0, label=band)
