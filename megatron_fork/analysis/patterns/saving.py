"""Writes what an analysis found: figures as SVG and PNG, numbers as JSON."""

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

# Tokens may hold dollar signs, which would begin a formula.
_PLAIN: dict[str, Any] = {"text.parse_math": False}
_FORMATS: Mapping[str, dict[str, Any]] = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 200}}


def save_figures(folder: Path, figures: Mapping[str, Callable[[], Figure]]) -> list[Path]:
    """Draw each figure and write it as NAME.svg and NAME.png; raises `RunFolderError` if the folder cannot be written."""
    written = []
    with matplotlib.style.context([*STYLE, _PLAIN, {"svg.hashsalt": "megatron-fork"}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # tokens are of every script
        for name, draw in figures.items():
            figure = draw()
            for ending, options in _FORMATS.items():
                path = folder / f"{name}.{ending}"
                with writing(path):
                    figure.savefig(path, facecolor="white", **options)
                written.append(path)
    return written


def save_record(path: Path, record: Mapping[str, Any]) -> Path:
    """Write numbers as JSON; raises `RunFolderError` if the folder cannot be written."""
    with writing(path):
        replace_file(path, json_text(record) + "\n")
    return path


def json_text(record: Mapping[str, Any]) -> str:
    """JSON with null for numbers that are none."""
    return json.dumps(_finite(record), indent=2, allow_nan=False, ensure_ascii=False)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A file that is written in this context, into a folder that is made if need be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written: {error.strerror or error}", hint="choose another --out"
        ) from error


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
