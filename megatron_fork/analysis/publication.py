"""Figures as papers print them: one column (3.3 in) or two (6.8 in), SVG with letters as paths and PNG of 300 dots an inch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import numpy

from megatron_fork.analysis.figures import Drawing, Line, Size, draw_line, finished, new_figure
from megatron_fork.analysis.json_lines import AnalysisError
from megatron_fork.analysis.metrics import Series
from megatron_fork.analysis.saving import PUBLICATION, save_as_both

SIZES: dict[str, Size] = {"column": (3.3, 2.4), "page": (6.8, 2.9)}
# Okabe and Ito's, in an order in which the first five are told apart with every kind of colour blindness. The first four lines
# also differ in how they are dashed.
COLOURS = ("#0072b2", "#d55e00", "#56b4e9", "#000000", "#e69f00", "#009e73")
DASHES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class PlottedCurve:
    """One line of a figure: `values` at `places`, NaN for a gap."""

    label: str
    places: Sequence[float]
    values: Sequence[float]


def save_curves(folder: Path, name: str, curves: Sequence[PlottedCurve], *, x_label: str, y_label: str) -> list[Path]:
    """Save lines over a common axis, such as an overlap over checkpoints, as `NAME-column` and `NAME-page`; returns the files.

    Raises `AnalysisError` if `name` is no name of a file or the curves are more than can be told apart, `RunFolderError` if a
    file cannot be written.
    """
    most = math.lcm(len(COLOURS), len(DASHES))
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name) or not 1 <= len(curves) <= most:
        raise AnalysisError(
            f"figure {name!r} with {len(curves)} curves",
            hint=f"name it with letters, digits and dashes, and give it 1 to {most} curves",
        )

    def draw(size: Size) -> Drawing:
        figure, axes = new_figure(x_label, y_label, size)
        for place, curve in enumerate(curves):
            line = Line(curve.label, COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)])
            draw_line(
                axes, Series(numpy.asarray(curve.places), numpy.asarray(curve.values, dtype=float)), line, width=1.2
            )
        return finished(figure)

    return save_plot(folder, name, draw)


def save_plot(folder: Path, name: str, draw: Callable[[Size], Drawing | None]) -> list[Path]:
    """Save what `draw` makes of each width, if it has data, as `NAME-column` and `NAME-page`; returns the files."""
    written = []
    for width, size in SIZES.items():
        with matplotlib.style.context([*PUBLICATION, {"svg.hashsalt": name}]):
            drawing = draw(size)
            if drawing is not None:
                written += save_as_both(drawing.figure, folder / f"{name}-{width}", option="--figures")
    return written
