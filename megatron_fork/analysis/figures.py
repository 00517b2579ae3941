"""The parts that every chart is made of: a figure with labelled axes, lines, and a legend above the plot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from megatron_fork.analysis.metrics import Metrics, Series

WIDE, NARROW = (10.6, 3.3), (5.2, 3.0)
FEW_POINTS, MANY_POINTS = 40, 1000


@dataclass(frozen=True)
class Drawing:
    """A figure, and what its caption has to add about these data."""

    figure: Figure
    remark: str = ""


def draw_lines(
    metrics: Metrics,
    names: dict[str, tuple[str, str, str]],
    y_label: str,
    *,
    stage: str = "train",
    x_label: str = "RL step",
    from_zero: bool = False,
) -> Drawing | None:
    """Draw each metric of `names`, which gives its legend, colour and line style; None when none was written."""
    drawn = {name: series for name in names if (series := metrics.series(stage, name))}
    if not drawn:
        return None
    figure, axes = new_figure(x_label, y_label)
    for name, series in drawn.items():
        label, colour, style = names[name]
        draw_line(axes, series, label, colour, style=style)
    if from_zero:
        axes.set_ylim(bottom=0)
    return finished(figure)


def draw_line(axes: Axes, series: Series, label: str, colour: str, *, style: str = "-", width: float = 1.5) -> None:
    finite = numpy.pad(numpy.isfinite(series.values), 1)
    points = int(finite.sum())
    # A point between two gaps is no line and needs its mark. Very many points would run into a band.
    between_gaps = (finite[1:-1] & ~finite[:-2] & ~finite[2:]).any()
    marker = "o" if points <= FEW_POINTS or between_gaps else ""
    width = width if points <= MANY_POINTS else width / 2
    axes.plot(series.steps, series.values, style, color=colour, label=label, linewidth=width, marker=marker, ms=2.6)


def new_figure(x_label: str, y_label: str, size: tuple[float, float] = NARROW) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    label_axes(axes, x_label, y_label)
    return figure, axes


def label_axes(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def finished(figure: Figure, remark: str = "") -> Drawing:
    """Put the legend above the plot, where it covers no data."""
    for axes in figure.axes:
        series = len(axes.get_legend_handles_labels()[0])
        if series:
            axes.legend(
                loc="lower left",
                bbox_to_anchor=(0.0, 1.0),
                ncols=series,
                borderaxespad=0.3,
                borderpad=0.2,
                columnspacing=1.2,
                handlelength=1.4,
                handletextpad=0.5,
            )
    return Drawing(figure, remark)
