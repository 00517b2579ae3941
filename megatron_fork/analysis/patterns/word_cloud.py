"""Word clouds with matplotlib alone: each word where a spiral from the centre first leaves room for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from megatron_fork.analysis.colours import PALETTE

WIDTH, HEIGHT = 6.0, 3.4
"""Inches."""
SMALLEST, LARGEST = 7.0, 34.0
"""Points."""
_GAP = 2.0
_SPACE = 0.15
"""Of a word's size, at each side of it: without a space two short words read as one."""
_LONGEST_WORD = 24  # characters; a longer one is cut


@dataclass(frozen=True)
class Placed:
    """A word with its size in points, and its box in points from the centre: left, bottom, right, top."""

    word: str
    size: float
    box: tuple[float, float, float, float]
    origin: tuple[float, float]
    """Where its text begins."""


def placed_words(words: Sequence[tuple[str, float]]) -> list[Placed]:
    """Words with their weights from 0 to 1, which set their sizes; those for which no room is left are not placed."""
    font = FontProperties(family=["sans-serif"])
    found: list[Placed] = []
    for word, weight in words:
        shown = word if len(word) <= _LONGEST_WORD else word[: _LONGEST_WORD - 1] + "…"
        size = SMALLEST + (LARGEST - SMALLEST) * min(max(weight, 0.0), 1.0)
        extents = TextPath((0, 0), shown, size=size, prop=font).get_extents()
        width, height = extents.width, max(extents.height, 0.2 * size)
        for x, y in _spiral():
            aside = width / 2 + _GAP + _SPACE * size
            box = (x - aside, y - height / 2 - _GAP, x + aside, y + height / 2 + _GAP)
            if max(-box[0], box[2]) > WIDTH * 36 or max(-box[1], box[3]) > HEIGHT * 36:
                continue
            if not any(_overlap(box, other.box) for other in found):
                found.append(Placed(shown, size, box, (x - width / 2 - extents.x0, y - height / 2 - extents.y0)))
                break
    return found


def draw_cloud(words: Sequence[tuple[str, float]], colour: str) -> Figure:
    """The cloud of words with weights from 0 to 1, heavy ones first; `colour` is a name of the palette."""
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    placed = placed_words(words)
    scale = fitting_scale(placed)
    axes.set_xlim(-WIDTH * 36 / scale, WIDTH * 36 / scale)  # a unit is a point, or more where few words leave room
    axes.set_ylim(-HEIGHT * 36 / scale, HEIGHT * 36 / scale)
    for number, each in enumerate(placed):
        style: dict[str, Any] = {"family": "sans-serif", "va": "baseline", "ha": "left", "color": PALETTE[colour][0]}
        axes.text(
            *each.origin, each.word, fontsize=scale * each.size, alpha=1.0 - 0.5 * number / max(1, len(placed)), **style
        )
    return figure


def fitting_scale(placed: Sequence[Placed]) -> float:
    """How many times larger the words may all be with room left for each."""
    across = max((max(-each.box[0], each.box[2]) for each in placed), default=WIDTH * 36)
    up = max((max(-each.box[1], each.box[3]) for each in placed), default=HEIGHT * 36)
    return min(WIDTH * 36 / across, HEIGHT * 36 / up)


def _spiral() -> list[tuple[float, float]]:
    """Points in turn further from the centre, twice as wide as high."""
    turns = [0.35 * step for step in range(1400)]
    return [(1.1 * turn * math.cos(turn), 0.5 * turn * math.sin(turn)) for turn in turns]


def _overlap(left: tuple[float, float, float, float], right: tuple[float, float, float, float]) -> bool:
    return left[0] < right[2] and right[0] < left[2] and left[1] < right[3] and right[1] < left[3]
