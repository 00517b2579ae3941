"""The figures of an evolution: overlap over checkpoints, entropy change by base entropy, percentile curves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_fork.analysis.colours import PALETTE
from megatron_fork.analysis.figures import finished, round_ticks
from megatron_fork.analysis.patterns.evolution import BINS, Evolution, evolution_record
from megatron_fork.analysis.saving import save_figures, save_record

SIZE = (6.0, 3.0)
_SHOWN = (50.0, 80.0, 90.0, 95.0, 99.0)


def save_evolution(folder: Path, found: Evolution) -> list[Path]:
    """Write evolution.json and the figures, and return their paths; raises `RunFolderError`."""
    figures: dict[str, Callable[[], Figure]] = {
        "overlap": partial(draw_overlap, found),
        "entropy_change": partial(draw_change, found),
        "percentiles": partial(draw_percentiles, found),
    }
    return [save_record(folder / "evolution.json", evolution_record(found)), *save_figures(folder, figures)]


def draw_overlap(found: Evolution) -> Figure:
    """Share of each checkpoint's selected tokens that the base model, and the final one, select too."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot(ylabel=f"overlap of the top {100 * found.ratio:g} %")
    places = np.arange(len(found.stages))
    axes.plot(places, [each.overlap_base for each in found.stages], "-o", color=PALETTE["blue"][0], label="with base")
    axes.plot(
        places, [each.overlap_final for each in found.stages], "-o", color=PALETTE["orange"][0], label="with final"
    )
    round_ticks(axes.yaxis, unit="%")
    _name_stages(axes, found)
    return finished(figure).figure


def draw_change(found: Evolution) -> Figure:
    """Mean change of entropy in each bin of 5 percentiles of the base model's entropy, a line a checkpoint."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel="percentile of base entropy", ylabel="mean change (nats)")
    later = found.stages[1:]
    for number, stage in enumerate(later):
        colour = colormaps["viridis"](0.9 * number / max(1, len(later) - 1))
        axes.plot(
            (np.arange(BINS) + 0.5) * 100 / BINS, stage.change, "-o", color=colour, label=stage.name, markersize=3
        )
    axes.axhline(0, color=PALETTE["muted"][0], linewidth=0.8)
    return finished(figure).figure


def draw_percentiles(found: Evolution) -> Figure:
    """Percentiles of entropy over checkpoints."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot(ylabel="entropy (nats)")
    for number, percentile in enumerate(_SHOWN):
        values = [stage.percentiles[percentile] for stage in found.stages]
        axes.plot(
            values, "-o", color=colormaps["viridis"](0.9 * number / len(_SHOWN)), label=f"p{percentile:g}", markersize=3
        )
    axes.set_ylim(bottom=0)
    _name_stages(axes, found)
    return finished(figure).figure


def _name_stages(axes: Axes, found: Evolution) -> None:
    names = [stage.name if len(stage.name) <= 14 else "…" + stage.name[-13:] for stage in found.stages]
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 6 else 0)
