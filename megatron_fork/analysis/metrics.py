"""The metrics of a run: one series of numbers per stage and name.

A run writes `StepMetrics.fields()` as one line of JSON, and `read_metrics` reads it again or says what is wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from megatron_fork.analysis.json_lines import JsonLine, read_json_lines

STAGES = ("sft", "train", "evaluation")
# The width of an axis, its margins and its square must be finite floats too.
_BEYOND_AXES = 1e150


@dataclass(frozen=True)
class StepMetrics:
    """One line of `metrics.jsonl`: the numbers of one step of a stage, by name."""

    stage: str
    step: int
    values: Mapping[str, float]

    def fields(self) -> dict[str, Any]:
        return {"stage": self.stage, "step": self.step, **self.values}

    @classmethod
    def of_line(cls, line: JsonLine) -> StepMetrics:
        # Strict JSON writers write null for a number that is not finite: it is a gap in a curve, unlike a missing name.
        numbers = {name: line.number(name) for name in line.fields if name not in ("stage", "step")}
        values = {name: math.nan if value is None else value for name, value in numbers.items()}
        return cls(line.one_of("stage", STAGES), line.whole("step"), values)


@dataclass(frozen=True)
class Series:
    """One metric over steps: rising `steps` [points], and `values` [points], NaN if they cannot be drawn."""

    steps: numpy.ndarray
    values: numpy.ndarray

    def __bool__(self) -> bool:
        return bool(numpy.isfinite(self.values).any())


@dataclass(frozen=True)
class Metrics:
    """The content of `metrics.jsonl`.

    `stages[stage][step][name]` is a number. `superseded` counts lines that a later line of the same stage and step
    replaced, `not_finite` the null, NaN and infinite values; `truncated`: whether the last line is half-written.
    """

    stages: dict[str, dict[int, Mapping[str, float]]]
    superseded: int
    not_finite: int
    truncated: bool

    def series(self, stage: str, name: str) -> Series:
        """Return the points at which the metric was written, in order of step."""
        written = [(step, values[name]) for step, values in sorted(self.stages[stage].items()) if name in values]
        steps = numpy.array([step for step, _ in written], dtype=int)
        values = numpy.array([value for _, value in written], dtype=float)
        return Series(steps, numpy.where(numpy.abs(values) < _BEYOND_AXES, values, numpy.nan))

    def last_step(self, stage: str) -> int:
        """Return the highest step written for a stage, 0 if there is none."""
        return max(self.stages[stage], default=0)


def read_metrics(path: Path) -> Metrics:
    """Read `metrics.jsonl`. Raise AnalysisError for a line with an unknown stage, no step, or a field that is not a number."""
    stages: dict[str, dict[int, Mapping[str, float]]] = {stage: {} for stage in STAGES}
    superseded = 0
    written = read_json_lines(path)
    for line in written.lines:
        read = StepMetrics.of_line(line)
        # A resumed job repeats the steps after its checkpoint: the policy has gone through the line that was written last.
        superseded += read.step in stages[read.stage]
        stages[read.stage][read.step] = read.values
    kept = [value for steps in stages.values() for values in steps.values() for value in values.values()]
    return Metrics(stages, superseded, sum(not math.isfinite(value) for value in kept), written.truncated)
