"""Ticks at round numbers: steps of 1, 2 or 5 times a power of ten, written as a reader would."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

LADDER = (1, 2, 5, 10)


def round_ticks(axis: Axis, *, most: int = 5, whole: bool = False, unit: str = "") -> None:
    """Set ticks on a linear axis, at most so many steps between them; `unit` "%" takes shares of 1."""
    axis.set_major_locator(MaxNLocator(nbins=most, steps=LADDER, integer=whole, min_n_ticks=1 if whole else 2))
    axis.set_major_formatter(FuncFormatter(lambda value, _: share_text(value) if unit == "%" else number_text(value)))


def log_ticks(axes: Axes, *, most: int = 6) -> None:
    """Set ticks on the logarithmic y axis: powers of ten, and where there are hardly two, 2 and 5 times them too."""
    low, high = sorted(axes.get_ylim())
    decades = math.log10(high / low)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=most))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number_text(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def number_text(value: float, most: float = 1e7) -> str:
    """Return a number of a round tick, 12,000 or 0.25 or 2e-6; from `most` on with a power of ten."""
    if value == 0 or 1e-3 <= abs(value) < most:
        return f"{value:,.10g}"
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def share_text(value: float) -> str:
    """Return percent; beyond any share as few letters as leave the plot its room."""
    percent = 100 * value
    return f"{percent:.10g} %" if abs(percent) < 1e5 else f"{number_text(percent, 1e5)} %"
