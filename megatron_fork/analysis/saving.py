"""Writes what an analysis found: numbers as JSON, figures as SVG with letters as paths and PNG of 300 dots an inch."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from megatron_fork.analysis.charts import STYLE
from megatron_fork.errors import RunFolderError
from megatron_fork.files import replace_file

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
_NOTHING: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}


def save_figures(folder: Path, figures: Mapping[str, Callable[[], Figure]]) -> list[Path]:
    """Draw each figure and write it as NAME.svg and NAME.png; raises `RunFolderError` if the folder cannot be written."""
    written = []
    for name, draw in figures.items():
        with matplotlib.style.context([*PUBLICATION, {"svg.hashsalt": name}]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # tokens are of every script
            written += save_as_both(draw(), folder / name)
    return written


def save_as_both(figure: Figure, path: Path, *, option: str = "--out") -> list[Path]:
    """Write a figure, made under `PUBLICATION`, as SVG and PNG without what differs from call to call; returns the files."""
    files = [path.with_name(f"{path.name}.{ending}") for ending in ("svg", "png")]
    for file, metadata in zip(files, (_NOTHING, {"Software": None}), strict=True):
        with writing(file, option=option):
            figure.savefig(file, metadata=metadata)
    return files


def save_record(path: Path, record: Mapping[str, Any]) -> Path:
    """Write numbers as JSON; raises `RunFolderError` if the folder cannot be written."""
    with writing(path):
        replace_file(path, json_text(record) + "\n")
    return path


def json_text(record: Mapping[str, Any]) -> str:
    """JSON with null for numbers that are none."""
    return json.dumps(_finite(record), indent=2, allow_nan=False, ensure_ascii=False)


@contextmanager
def writing(path: Path, *, option: str = "--out") -> Iterator[None]:
    """A file that is written in this context, into a folder that is made if need be; `option` names the folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written: {error.strerror or error}", hint=f"choose another folder with {option}"
        ) from error


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
