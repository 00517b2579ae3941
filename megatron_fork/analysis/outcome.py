"""The outcome of a run, counted from its files, even if the run was resumed or has not finished."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy

from megatron_fork.analysis.json_lines import read_json_lines
from megatron_fork.analysis.metrics import Metrics, read_metrics

# Parts of a training step that are timed.
PHASES = ("rollout", "statistics", "update", "synchronise")


@dataclass(frozen=True)
class Outcome:
    """`seconds`: by phase; `final_evaluation`: step and metrics of the last evaluation, empty before the first."""

    steps: int
    steps_without_signal: int
    updates: int
    groups_sampled: int
    groups_with_signal: int
    final_evaluation: dict[str, float]
    seconds: dict[str, float]
    tokens_per_second: float
    """Trained response tokens over the time of their steps; NaN before the first step."""


def read_outcome(folder: Path) -> Outcome:
    """Count a run folder's metrics and updates; raises AnalysisError if a line of them cannot be read."""
    metrics, updates = read_metrics(folder / "metrics.jsonl"), folder / "updates.jsonl"
    made = read_json_lines(updates).lines if updates.is_file() else []
    return outcome(metrics, sum(not update.number("update/skipped") for update in made))


def outcome(metrics: Metrics, updates: int) -> Outcome:
    steps = metrics.stages["train"]
    last = max(metrics.stages["evaluation"], default=None)
    seconds = {name: total(metrics, "train", f"time/{name}") for name in PHASES}
    whole = total(metrics, "train", "time/step")
    tokens = sum(finite(step, "tokens_per_second") * finite(step, "time/step") for step in steps.values())
    return Outcome(
        steps=metrics.last_step("train"),
        steps_without_signal=sum(signal(step) == 0 for step in steps.values()),
        updates=updates,
        groups_sampled=round(sum(finite(step, "rollout/groups_sampled") for step in steps.values())),
        groups_with_signal=round(sum(signal(step) for step in steps.values() if math.isfinite(signal(step)))),
        final_evaluation={} if last is None else {"step": last, **metrics.stages["evaluation"][last]},
        seconds={
            "warm_start": total(metrics, "sft", "time/step"),
            **seconds,
            "evaluation": total(metrics, "evaluation", "time/evaluation"),
        },
        tokens_per_second=tokens / whole if whole else math.nan,
    )


def signal(step: Mapping[str, float]) -> float:
    """Groups with signal in a step, or the groups kept, which is all that earlier versions wrote; NaN if neither is known."""
    return step.get("rollout/groups_with_signal", step.get("rollout/groups_kept", math.nan))


def finite(step: Mapping[str, float], name: str) -> float:
    value = step.get(name, 0.0)
    return value if math.isfinite(value) else 0.0


def total(metrics: Metrics, stage: str, name: str) -> float:
    return float(numpy.nansum(metrics.series(stage, name).values))
