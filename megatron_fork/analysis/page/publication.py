"""Figures as papers print them: one column (3.3 in) or two (6.8 in), SVG with letters as paths and PNG of 300 dots an inch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy
from matplotlib.figure import Figure

from megatron_fork.analysis.charts import CURVES, STYLE
from megatron_fork.analysis.figures import Drawing, Line, Size, draw_line, finished, new_figure
from megatron_fork.analysis.json_lines import AnalysisError
from megatron_fork.analysis.metrics import Series
from megatron_fork.analysis.page.plots import PLOTS, Entropies
from megatron_fork.analysis.run_record import RunRecord
from megatron_fork.errors import RunFolderError

SIZES: dict[str, Size] = {"column": (3.3, 2.4), "page": (6.8, 2.9)}
# Okabe and Ito's, in an order in which the first five are told apart with every kind of colour blindness. The first four lines
# also differ in how they are dashed.
COLOURS = ("#0072b2", "#d55e00", "#56b4e9", "#000000", "#e69f00", "#009e73")
DASHES = ("-", "--", "-.", ":")
PUBLICATION: list[str | Path | dict[str, Any]] = [
    *STYLE,
    {
        "font.size": 8,
        "axes.labelsize": 8,
        "xtick.labelsize": 7.5,
        "ytick.labelsize": 7.5,
        "legend.fontsize": 7.5,
        "axes.spines.left": True,
        "ytick.major.size": 3,
        "lines.linewidth": 1.2,
        "figure.facecolor": "white",
        "axes.facecolor": "white",
        "savefig.dpi": 300,
        # A label may hold dollar signs, which would begin a formula.
        "text.parse_math": False,
        "svg.fonttype": "path",
    },
]


@dataclass(frozen=True)
class PlottedCurve:
    """One line of a figure: `values` at `places`, NaN for a gap."""

    label: str
    places: Sequence[float]
    values: Sequence[float]


def save_figures(folder: Path, entropies: Entropies, record: RunRecord | None) -> list[Path]:
    """Save every plot that has data, and a run's curves; returns the files.

    Raises `AnalysisError` if nothing has data, `RunFolderError` if a file cannot be written.
    """
    written = []
    for plot in PLOTS:
        written += _save(folder, plot.identifier, partial(plot.draw, entropies))
    if record is not None:
        for curve in CURVES:
            written += _save(folder, curve.identifier, partial(curve.draw, record))
    if not written:
        raise AnalysisError(
            f"--figures={folder}: there are no entropies and no metrics to draw",
            hint="compute entropies with `megatron-fork analyze rescore`",
        )
    return written


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

    return _save(folder, name, draw)


def _save(folder: Path, name: str, draw: Callable[[Size], Drawing | None]) -> list[Path]:
    written = []
    for width, size in SIZES.items():
        with matplotlib.style.context([*PUBLICATION, {"svg.hashsalt": name}]):
            drawing = draw(size)
            if drawing is not None:
                written += _save_as_both(drawing.figure, folder / f"{name}-{width}")
    return written


def _save_as_both(figure: Figure, path: Path) -> list[Path]:
    files = [path.with_suffix(".svg"), path.with_suffix(".png")]
    nothing: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(files[0], metadata=nothing)
        figure.savefig(files[1], metadata={"Software": None})
    except OSError as error:
        raise RunFolderError(
            f"{error.filename or path} cannot be written: {error.strerror}", hint="choose another folder with --figures"
        ) from error
    return files
