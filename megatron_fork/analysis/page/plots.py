"""The entropy plots: distribution, percentiles beside the paper's, by correctness, and by position in the response."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

from megatron_fork.analysis.charts import ChartPlan
from megatron_fork.analysis.colours import PALETTE
from megatron_fork.analysis.counting import BINS_PER_DECADE, DECIDED, PAPER_ENTROPY
from megatron_fork.analysis.figures import (
    Drawing,
    Line,
    Size,
    draw_line,
    finished,
    is_wide,
    log_ticks,
    new_figure,
    number_text,
    round_ticks,
)
from megatron_fork.analysis.metrics import Series
from megatron_fork.analysis.page.responses import VERDICTS
from megatron_fork.analysis.page.statistics import EDGES, LOWEST, POSITIONS, Statistics

STONE, ORANGE, BLUE, INK, VIOLET = (PALETTE[name][0] for name in ("stone", "orange", "blue", "ink", "violet"))
BY_VERDICT = {0: Line("right", BLUE), 1: Line("wrong", ORANGE, "--"), 2: Line("not judged", VIOLET, ":")}
# Place of the first bin, in decades below `LOWEST`.
FIRST = (-0.55, -0.1)
# Share of tokens below an entropy in nats: Qwen3-8B, its responses to AIME.
PAPERS = ((PAPER_ENTROPY["share_below_0.01"], DECIDED), (0.80, PAPER_ENTROPY["p80"]))
_SHARES = numpy.arange(0.02, 1.0, 0.01)


@dataclass(frozen=True)
class Entropies:
    """What the plots show; `thresholds` of the selection at the traced steps, empty if there are none."""

    statistics: Statistics
    thresholds: Series


def draw_distribution(entropies: Entropies, size: Size) -> Drawing | None:
    counts = entropies.statistics.histogram.sum(axis=0)
    if not counts.any():
        return None
    counts = counts[:, : _last_bin(counts) + 1]
    figure, axes = new_figure("entropy of a response token (nats)", "traced tokens, log count", size)
    # Bars cannot be stacked on a log axis: both start at the axis, with the selected ones in front.
    _draw_bars(axes, counts.sum(axis=0), STONE, "all traced tokens")
    if counts[1].any():
        _draw_bars(axes, counts[1], ORANGE, "carried gradient")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    log_ticks(axes)
    _label_decades(axes, counts.shape[1])
    _mark_thresholds(axes, entropies.thresholds, wide=is_wide(size))
    return finished(figure, in_words(entropies.statistics))


def _draw_bars(axes: Axes, counts: numpy.ndarray, colour: str, label: str) -> None:
    places = numpy.log10(EDGES[: len(counts)])
    axes.stairs(counts[1:], places, fill=True, color=colour, label=label, baseline=0.5)
    axes.stairs(counts[:1], places[0] + numpy.array(FIRST), fill=True, color=colour, baseline=0.5)


def _last_bin(counts: numpy.ndarray) -> int:
    """The highest bin that is not empty, but at least a few, so that there is an axis."""
    filled = numpy.flatnonzero(counts.reshape(-1, counts.shape[-1]).sum(axis=0))
    return max(int(filled[-1]), 2 * BINS_PER_DECADE)


def _label_decades(axes: Axes, bins: int) -> None:
    low, high = math.log10(LOWEST), math.log10(EDGES[bins - 1])
    decades = list(range(round(low) + 1, math.floor(high + 1e-6) + 1))
    axes.xaxis.set_major_locator(FixedLocator([low + sum(FIRST) / 2, *decades]))
    labels = [f"< {LOWEST:g}", *(number_text(10.0**decade) for decade in decades)]
    axes.xaxis.set_major_formatter(FixedFormatter(labels))
    axes.xaxis.set_minor_formatter(NullFormatter())


def place_of(entropy: float) -> float:
    """The place of an entropy on the axis of the distribution."""
    return math.log10(entropy) if entropy >= LOWEST else math.log10(LOWEST) + sum(FIRST) / 2


def _mark_thresholds(axes: Axes, thresholds: Series, *, wide: bool) -> None:
    """Mark the threshold of the last traced step by a line, and the range over all traced steps by a band."""
    if not thresholds:
        return
    finite = numpy.isfinite(thresholds.values)
    steps, values = thresholds.steps[finite], thresholds.values[finite]
    low, high = float(values.min()), float(values.max())
    label = f"threshold, step {steps[-1]}: {values[-1]:.2f} nats"
    axes.axvline(place_of(values[-1]), color=INK, linestyle="--", linewidth=1.2, label=label)
    if low < high:
        band = f"{'thresholds, ' if wide else ''}traced steps: {low:.2f} to {high:.2f} nats"
        axes.axvspan(place_of(low), place_of(high), color=BLUE, alpha=0.18, linewidth=0, label=band)


def in_words(statistics: Statistics) -> str:
    percentile = number_text(float(f"{statistics.percentile(0.8):.2g}"))
    sentences = [
        f"{statistics.tokens:,} tokens of {statistics.responses:,} responses: {100 * statistics.below_decided():.1f} % are "
        f"below {DECIDED:g} nats, and the 80th percentile is {percentile} nats (the paper's Qwen3-8B: "
        f"{100 * PAPER_ENTROPY['share_below_0.01']:.2f} % and {PAPER_ENTROPY['p80']:g} nats)."
    ]
    if statistics.not_finite:
        sentences.append(f"{statistics.not_finite:,} tokens whose entropy is not finite are left out.")
    return " ".join(sentences)


def draw_percentiles(entropies: Entropies, size: Size) -> Drawing | None:
    statistics = entropies.statistics
    if not statistics:
        return None
    figure, axes = new_figure("percentile of the tokens", "entropy (nats)", size)
    curves: dict[int | None, Line] = {None: Line("all", INK)}
    present = [place for place in BY_VERDICT if statistics.histogram[place].any()]
    if len(present) > 1:
        curves.update((place, BY_VERDICT[place]) for place in present)
    for place, line in curves.items():
        values = numpy.maximum(statistics.percentiles(_SHARES, place), LOWEST)
        axes.plot(100 * _SHARES, values, line.style, color=line.colour, label=line.label, linewidth=1.4)
    axes.plot(
        [100 * share for share, _ in PAPERS],
        [entropy for _, entropy in PAPERS],
        "D",
        color=VIOLET,
        markersize=5,
        label="paper, Qwen3-8B",
    )
    axes.set_yscale("log")
    log_ticks(axes)
    axes.set_xlim(0, 100)
    round_ticks(axes.xaxis, whole=True)
    shown = (50, 80, 90, 95, 99)
    numbers = ", ".join(f"{share}th {statistics.percentile(share / 100):.3g}" for share in shown)
    return finished(figure, f"Percentiles in nats: {numbers}.")


def draw_correctness(entropies: Entropies, size: Size) -> Drawing | None:
    """Two distributions as shares of their tokens; None unless some responses are right and others wrong."""
    statistics = entropies.statistics
    counts = statistics.histogram.sum(axis=1)
    if not (counts[0].any() and counts[1].any()):
        return None
    last = _last_bin(counts)
    figure, axes = new_figure("entropy of a response token (nats)", "share of the tokens", size)
    places = numpy.log10(EDGES[: last + 1])
    for place in (0, 1):
        line, shares = BY_VERDICT[place], counts[place][: last + 1] / counts[place].sum()
        axes.stairs(shares[1:], places, color=line.colour, linestyle=line.style, linewidth=1.4, label=line.label)
        axes.stairs(shares[:1], places[0] + numpy.array(FIRST), color=line.colour, linestyle=line.style, linewidth=1.4)
    axes.set_ylim(bottom=0)
    round_ticks(axes.yaxis, unit="%")
    _label_decades(axes, last + 1)
    sums, tokens = statistics.position_sums.sum(axis=1), statistics.position_counts.sum(axis=1)
    means = [
        f"{VERDICTS[place]} {sums[place] / tokens[place]:.3g} nats over {tokens[place]:,} tokens" for place in (0, 1)
    ]
    return finished(figure, f"Means: {', '.join(means)}.")


def draw_positions(entropies: Entropies, size: Size) -> Drawing | None:
    statistics = entropies.statistics
    if not statistics:
        return None
    figure, axes = new_figure("position in the response (tokens)", "mean entropy (nats)", size)
    counts, sums = statistics.position_counts, statistics.position_sums
    present = [place for place in BY_VERDICT if counts[place].any()]
    drawn = [(Line("all", INK), counts.sum(axis=0), sums.sum(axis=0))]
    if len(present) > 1:
        drawn += [(BY_VERDICT[place], counts[place], sums[place]) for place in present]
    after = numpy.append(POSITIONS[1:], 2 * POSITIONS[-1])
    middles = numpy.sqrt(POSITIONS * (after - 1.0))
    for line, count, total in drawn:
        means = numpy.where(count > 0, total / numpy.maximum(count, 1), numpy.nan)
        draw_line(axes, Series(middles, means), line)
    axes.set_xscale("log")
    last = int(POSITIONS[numpy.flatnonzero(counts.sum(axis=0))[-1]])
    decades = [10**power for power in range(math.floor(math.log10(max(last, 10))) + 1)]
    axes.xaxis.set_major_locator(FixedLocator(decades))
    axes.xaxis.set_major_formatter(FixedFormatter([number_text(decade) for decade in decades]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0)
    round_ticks(axes.yaxis)
    return finished(figure)


PLOTS = (
    ChartPlan(
        "distribution",
        "How entropy is distributed",
        "At the left are tokens that are all but decided, at the right those where a response can fork.",
        draw_distribution,
        wide=True,
    ),
    ChartPlan("percentiles", "Percentiles", "Entropy below which a share of the tokens is.", draw_percentiles),
    ChartPlan("correctness", "Right and wrong", "Tokens of right and of wrong responses.", draw_correctness),
    ChartPlan("positions", "By position", "Mean over the tokens around a position, on a log axis.", draw_positions),
)
