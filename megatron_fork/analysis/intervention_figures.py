"""The figures of a decoding intervention: the paper's two lines, and the grid as a table of colours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from megatron_fork.analysis.colours import PALETTE
from megatron_fork.analysis.intervention import CellResult, Intervention

_SIZE = (5.0, 3.2)


def figures_of(found: Intervention) -> dict[str, Callable[[], Figure]]:
    """Name and drawing of each figure that there are cells for."""
    figures: dict[str, Callable[[], Figure]] = {}
    if any(len(line) > 1 for line in _lines(found).values()):
        figures["intervention_lines"] = partial(draw_lines, found)
    if all(_grid(found)):
        figures["intervention_grid"] = partial(draw_grid, found)
    return figures


def draw_lines(found: Intervention) -> Figure:
    """Accuracy with its interval over each temperature while the other is held at 1, as the paper's figure."""
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel="temperature of the tokens that vary, the others at 1", ylabel="accuracy")
    names = {"high": "above the threshold (forks)", "low": "up to the threshold"}
    lines = _lines(found)
    ticks = sorted({_varied(each, name) for name, line in lines.items() for each in line})
    for (name, line), colour in zip(lines.items(), ("orange", "blue"), strict=True):
        places = [ticks.index(_varied(each, name)) for each in line]
        axes.plot(places, [each.accuracy for each in line], color=PALETTE[colour][0], marker="o", label=names[name])
        low, high = zip(*(each.interval for each in line), strict=True) if line else ((), ())
        axes.fill_between(places, low, high, color=PALETTE[colour][0], alpha=0.15, linewidth=0)
    axes.set_xticks(range(len(ticks)), [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(0, None)
    axes.legend()
    return figure


def draw_grid(found: Intervention) -> Figure:
    """Accuracy of the pairs of temperatures; those of a line that meet only one other temperature are in `draw_lines`."""
    high, low = _grid(found)
    values = np.full((len(high), len(low)), np.nan)
    for each in (each for each in found.results if each.cell.high in high and each.cell.low in low):
        values[high.index(each.cell.high), low.index(each.cell.low)] = each.accuracy
    figure = Figure(figsize=(1.6 + 0.6 * len(low), 1.2 + 0.4 * len(high)), layout="constrained")
    axes = figure.add_subplot(xlabel="temperature up to the threshold", ylabel="temperature above it")
    axes.grid(visible=False)
    axes.imshow(values, origin="lower", aspect="auto", cmap="Blues", vmin=0.0)
    top = np.nanmax(values)
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        colour = "white" if value > 0.6 * top else PALETTE["ink"][0]
        axes.text(column, row, f"{100 * value:.1f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(low)), [f"{each:g}" for each in low])
    axes.set_yticks(range(len(high)), [f"{each:g}" for each in high])
    return figure


def _grid(found: Intervention) -> tuple[list[float], list[float]]:
    """The temperatures above and up to the threshold that were drawn with several of the other."""
    cells = [each.cell for each in found.results]
    high = {cell.high for cell in cells if len({other.low for other in cells if other.high == cell.high}) > 1}
    low = {cell.low for cell in cells if len({other.high for other in cells if other.low == cell.low}) > 1}
    return (sorted(high), sorted(low)) if len(high) > 1 and len(low) > 1 else ([], [])


def _lines(found: Intervention) -> dict[str, list[CellResult]]:
    """By the temperature that varies: the cells that hold the other at 1, in order."""
    return {
        "high": sorted((each for each in found.results if each.cell.low == 1.0), key=lambda each: each.cell),
        "low": sorted((each for each in found.results if each.cell.high == 1.0), key=lambda each: each.cell),
    }


def _varied(result: CellResult, name: str) -> float:
    return result.cell.high if name == "high" else result.cell.low
