"""The parts of every chart: a figure with labelled axes, lines, ticks at round numbers, and a legend above."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from megatron_fork.analysis.metrics import Metrics, Series

Size = tuple[float, float]
# In inches. The page shows an inch on about 85 pixels, a narrow figure in one column and a wide one across all columns, so that
# text of 9 points is readable on a screen of any width.
WIDE, NARROW = (11.5, 3.3), (3.7, 2.8)
FEW_POINTS, MANY_POINTS = 40, 200
# Points that a legend entry takes: for each letter, and for the line with the gaps around it.
LETTER, HANDLE, Y_AXIS = 5.2, 32.0, 40.0
# Steps between ticks are these times a power of ten.
LADDER = (1, 2, 5, 10)


@dataclass(frozen=True)
class Drawing:
    """A figure, and a remark for its caption about these data."""

    figure: Figure
    remark: str = ""


@dataclass(frozen=True)
class Line:
    """How a metric is drawn."""

    label: str
    colour: str
    style: str = "-"
    stage: str = "train"


def draw_lines(
    metrics: Metrics,
    lines: dict[str, Line],
    y_label: str,
    size: Size,
    *,
    x_label: str = "RL step",
    from_zero: bool = False,
    unit: str = "",
    whole: bool = False,
) -> Drawing | None:
    """Draw each metric that `lines` names; None if none was written. `whole`: ticks are whole numbers, for counts."""
    drawn = {name: series for name, line in lines.items() if (series := metrics.series(line.stage, name))}
    if not drawn:
        return None
    figure, axes = new_figure(x_label, y_label, size)
    for name, series in drawn.items():
        draw_line(axes, series, lines[name])
    if from_zero:
        values = numpy.concatenate([series.values for series in drawn.values()])
        # An estimate may be negative even if the true value cannot be: it is drawn all the same.
        if numpy.nanmin(values) >= 0:
            axes.set_ylim(bottom=0, top=None if numpy.nanmax(values) > 0 else 1)
    round_ticks(axes.yaxis, unit=unit, whole=whole)
    return finished(figure)


def draw_line(axes: Axes, series: Series, line: Line, *, width: float = 1.5) -> None:
    finite = numpy.pad(numpy.isfinite(series.values), 1)
    points = int(finite.sum())
    # A point between two gaps gives no line, so it needs a marker. Very many markers would run into a band.
    between_gaps = (finite[1:-1] & ~finite[:-2] & ~finite[2:]).any()
    marker = "o" if points <= FEW_POINTS or between_gaps else ""
    width = width if points <= MANY_POINTS else width / 2
    axes.plot(
        series.steps,
        series.values,
        line.style,
        color=line.colour,
        label=line.label,
        linewidth=width,
        marker=marker,
        ms=2.6,
    )


def new_figure(x_label: str, y_label: str, size: Size) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    label_axes(axes, x_label, y_label, size)
    return figure, axes


def label_axes(axes: Axes, x_label: str, y_label: str, size: Size) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    round_ticks(axes.xaxis, most=10 if is_wide(size) else 4, whole=True)
    round_ticks(axes.yaxis)


def is_wide(size: Size) -> bool:
    return size[0] > 2 * NARROW[0]


def finished(figure: Figure, remark: str = "") -> Drawing:
    """Put the legend above the plot, where it covers no data, in as many rows as the width needs.

    A single line needs no legend: the chart's title names it.
    """
    for axes in figure.axes:
        if max(axes.get_xlim()) >= 1e5 and not is_wide((figure.get_figwidth(), figure.get_figheight())):
            round_ticks(axes.xaxis, most=3, whole=True)  # more labels of six digits do not fit
        labels = axes.get_legend_handles_labels()[1]
        if len(labels) > 1 or len(figure.axes) > 1:
            axes.legend(
                loc="lower left",
                bbox_to_anchor=(0.0, 1.0),
                ncols=legend_columns(labels, figure.get_figwidth() * 72 - Y_AXIS),
                borderaxespad=0.3,
                borderpad=0.2,
                columnspacing=1.2,
                handlelength=1.4,
                handletextpad=0.5,
            )
    return Drawing(figure, remark)


def legend_columns(labels: Sequence[str], points: float) -> int:
    """Return the largest number of legend columns that fit into a width; entries fill column by column."""
    for columns in range(len(labels), 1, -1):
        rows = -(-len(labels) // columns)
        entries = [labels[first : first + rows] for first in range(0, len(labels), rows)]
        if sum(HANDLE + LETTER * max(map(len, column)) for column in entries) <= points:
            return columns
    return 1


def round_ticks(axis: Axis, *, most: int = 5, whole: bool = False, unit: str = "") -> None:
    """Set ticks on a linear axis with at most `most` steps; with `unit` "%" values are fractions of 1."""
    axis.set_major_locator(MaxNLocator(nbins=most, steps=LADDER, integer=whole, min_n_ticks=1 if whole else 2))
    axis.set_major_formatter(FuncFormatter(lambda value, _: share_text(value) if unit == "%" else number_text(value)))


def log_ticks(axes: Axes, *, most: int = 6) -> None:
    """Set ticks on the logarithmic y axis: powers of ten, and below two decades also 2 and 5 times them."""
    low, high = sorted(axes.get_ylim())
    decades = math.log10(high / low)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=most))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def number_text(value: float, most: float = 1e7) -> str:
    """Return the text of a round number, 12,000 or 0.25 or 2e-6; from `most` on with a power of ten."""
    if value == 0 or 1e-3 <= abs(value) < most:
        return f"{value:,.10g}"
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def share_text(value: float) -> str:
    """Return a fraction in percent; very large values in short form, which leaves room for the plot."""
    percent = 100 * value
    return f"{percent:.10g} %" if abs(percent) < 1e5 else f"{number_text(percent, 1e5)} %"
