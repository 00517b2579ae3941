"""The decoding intervention (arXiv 2506.01939, section 2.2): accuracy under one temperature at forks and another elsewhere.

A token is drawn at T_high where its entropy at temperature 1 is above the threshold, at T_low elsewhere; 0 takes the likeliest
token. All cells draw with the same random numbers, so that their differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_fork.analysis.counting import PAPER_ENTROPY
from megatron_fork.analysis.saving import save_figures, save_record
from megatron_fork.errors import EvaluationError
from megatron_fork.evaluation import bootstrap_interval, standard_error
from megatron_fork.traces import TraceFiles

PAPER_TEMPERATURES = (0.0, 0.05, 0.3, 0.6, 1.0, 2.0, 3.0, 5.0)
"""Of the one that varies while the other is held at 1."""
Interval = tuple[float, float]


@dataclass(frozen=True, order=True)
class Cell:
    """A pair of temperatures."""

    high: float
    low: float

    @property
    def name(self) -> str:
        return f"high-{self.high:g}_low-{self.low:g}"

    @property
    def is_plain(self) -> bool:
        return self.high == self.low == 1.0


PLAIN = Cell(1.0, 1.0)


@dataclass(frozen=True)
class CellResult:
    """What the responses of a cell say; intervals are of 95 %, by bootstrap over prompts."""

    cell: Cell
    prompts: int
    samples: int
    accuracy: float
    """Mean reward over prompts of the mean over samples."""
    interval: Interval
    standard_error: float
    response_tokens: float
    """Mean length."""
    cut: float
    """Share of responses that reached the limit."""
    by_prompt: Mapping[str, float]
    """Mean reward of each prompt."""


@dataclass(frozen=True)
class Intervention:
    """All cells that were drawn, those that were not, and what was asked for."""

    results: Sequence[CellResult]
    left_out: Sequence[Cell]
    threshold: float
    seed: int
    about: Mapping[str, Any]
    """Model, engine, prompt set and how many tokens were drawn."""

    def difference(self, result: CellResult) -> tuple[float, Interval] | None:
        """(accuracy above that at temperature 1, its interval) over the same prompts; None if that was not drawn."""
        plain = next((each for each in self.results if each.cell.is_plain), None)
        if plain is None or result.cell.is_plain:
            return None
        values = [result.by_prompt[prompt] - plain.by_prompt[prompt] for prompt in result.by_prompt]
        return float(np.mean(values)), bootstrap_interval(values, seed=self.seed)


def cells_of(high: Sequence[float], low: Sequence[float], *, paper: bool) -> list[Cell]:
    """Every pair of the grid, and with `paper` the paper's two lines; temperature 1 first, then from the lines outwards."""
    wanted = {Cell(above, below) for above in high for below in low}
    if paper:
        wanted |= {Cell(each, 1.0) for each in PAPER_TEMPERATURES} | {Cell(1.0, each) for each in PAPER_TEMPERATURES}
    return sorted(wanted, key=lambda cell: (not cell.is_plain, cell.high != 1.0 and cell.low != 1.0, cell))


def cell_result(cell: Cell, files: TraceFiles, *, seed: int) -> CellResult:
    """What the traces of a cell say; raises `EvaluationError` for a response that nothing judged."""
    rewards: dict[str, list[float]] = {}
    lengths: list[int] = []
    cut = 0
    for part in files.parts(["prompt_id", "reward", "finish_reason"]):
        lengths += part.lengths.tolist()
        cut += part.values("finish_reason").count("length")
        for prompt, reward in zip(part.values("prompt_id"), part.values("reward"), strict=True):
            if reward is None:
                raise EvaluationError(f"{part.where} has responses without a reward", hint="give prompts with answers")
            rewards.setdefault(prompt, []).append(reward)
    by_prompt = {prompt: float(np.mean(values)) for prompt, values in sorted(rewards.items())}
    means = list(by_prompt.values())
    return CellResult(
        cell,
        len(means),
        max(map(len, rewards.values())),
        float(np.mean(means)),
        bootstrap_interval(means, seed=seed),
        standard_error(means),
        float(np.mean(lengths)),
        cut / len(lengths),
        by_prompt,
    )


def intervention_record(found: Intervention) -> dict[str, Any]:
    """The intervention as JSON."""
    cells = []
    for result in found.results:
        difference = found.difference(result)
        cells.append({
            **asdict(result.cell),
            **{name: value for name, value in vars(result).items() if name not in ("cell", "by_prompt")},
            "difference": None if difference is None else difference[0],
            "difference_interval": None if difference is None else difference[1],
        })  # fmt: skip
    return {
        "threshold": found.threshold,
        "paper_threshold": PAPER_ENTROPY["p80"],
        **found.about,
        "cells": cells,
        "left_out": [asdict(cell) for cell in found.left_out],
    }


def save_intervention(folder: Path, found: Intervention) -> list[Path]:
    """Write intervention.json and the figures, and return their paths; raises `RunFolderError`."""
    from megatron_fork.analysis.intervention_figures import figures_of

    record = save_record(folder / "intervention.json", intervention_record(found))
    return [record, *save_figures(folder, figures_of(found))]
