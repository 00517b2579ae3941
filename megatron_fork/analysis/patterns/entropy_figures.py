"""The figures of an entropy pattern: distribution, places in the response, word clouds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from megatron_fork.analysis.colours import PALETTE
from megatron_fork.analysis.counting import EDGES, PAPER_ENTROPY
from megatron_fork.analysis.figures import finished, log_ticks, number_text, round_ticks
from megatron_fork.analysis.patterns.entropy import EntropyPattern
from megatron_fork.analysis.patterns.sums import RELATIVE_BINS, TokenMean
from megatron_fork.analysis.patterns.word_cloud import draw_cloud

SIZE = (6.0, 3.0)
_COLOURS = {"all": "ink", "right": "teal", "wrong": "orange", "unjudged": "stone"}
_DASHES = {"all": "-", "right": "-", "wrong": "--", "unjudged": ":"}
_WORDS = 60


def figures_of(pattern: EntropyPattern) -> dict[str, Callable[[], Figure]]:
    """Name and drawing of each figure; no word cloud where no token occurs often enough."""
    figures: dict[str, Callable[[], Figure]] = {
        "distribution": partial(draw_distribution, pattern),
        "positions": partial(draw_positions, pattern),
    }
    if pattern.highest:
        figures["words_highest"] = partial(_cloud, pattern.highest, "orange")
    if pattern.lowest:
        figures["words_lowest"] = partial(_cloud, pattern.lowest, "blue")
    return figures


def draw_distribution(pattern: EntropyPattern) -> Figure:
    """Share of tokens in each log bin, of right and wrong responses beside all, with the 80th percentile and the paper's."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot(
        xlabel="entropy of a response token (nats); first bar: below 1e-4", ylabel="share of tokens, log scale"
    )
    low = int(np.searchsorted(EDGES, 1e-4))
    edges = np.concatenate([[EDGES[low - 2]], EDGES[low:]])  # all smaller ones in a bin at the left end
    for name, group in pattern.groups.items():
        if not group.tokens or (name != "all" and len(pattern.groups) == 2):
            continue
        counts = np.concatenate([[group.counts[: low + 1].sum()], group.counts[low + 1 :]]) / group.tokens
        used = int(np.flatnonzero(counts)[-1]) + 1
        axes.stairs(counts[:used], edges[: used + 1], label=name, baseline=None, **_style(name))
    everything = pattern.groups["all"].percentiles[80.0]
    axes.axvline(
        max(everything, edges[0]), color=PALETTE["blue"][0], linestyle="--", label=f"80th percentile {everything:.3g}"
    )
    axes.axvline(
        PAPER_ENTROPY["p80"], color=PALETTE["muted"][0], linestyle=":", label=f"the paper's {PAPER_ENTROPY['p80']}"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value)))
    log_ticks(axes)
    return finished(figure).figure


def draw_positions(pattern: EntropyPattern) -> Figure:
    """Mean entropy by place: in twentieths of the response, and by the number of the token."""
    figure = Figure(figsize=(SIZE[0], SIZE[1]), layout="constrained")
    relative, absolute = figure.subplots(1, 2, sharey=True)
    for name, places in pattern.positions.items():
        if name == "all" or len(pattern.positions) > 2:
            middles = (np.arange(RELATIVE_BINS) + 0.5) / RELATIVE_BINS
            relative.plot(middles, places.relative.mean, label=name, **_style(name))
            used = np.flatnonzero(places.absolute.count)
            absolute.plot(2.0 ** (used - 0.5), places.absolute.mean[used], marker="o", markersize=3, **_style(name))
    relative.set(xlabel="place in the response", ylabel="mean entropy (nats)", ylim=(0, None))
    round_ticks(relative.xaxis, unit="%")
    round_ticks(relative.yaxis)
    absolute.set(xlabel="token number, log scale", xscale="log")
    absolute.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value)))
    if len(relative.get_lines()) > 1:
        relative.legend()
    return figure


def _style(group: str) -> dict[str, Any]:
    return {"color": PALETTE[_COLOURS[group]][0], "linestyle": _DASHES[group]}


def _cloud(tokens: Sequence[TokenMean], colour: str) -> Figure:
    """Words in the order of the table, the first one largest."""
    shown = tokens[:_WORDS]
    words = [each.text.removeprefix("␣") or each.text for each in shown]
    return draw_cloud([(word, 1 - number / len(words)) for number, word in enumerate(words)], colour)
