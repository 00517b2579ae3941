"""Where a run stands, as a checkpoint's manifest keeps it, and the checks of what such a record says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

from megatron_fork.errors import CheckpointError
from megatron_fork.rollout import PromptGroup

# No run counts so far; what says so was written by something else.
_MOST = 10**12
_TALLY, _FAILURES = ("drawn", "judged", "rounds"), ("responses", "error", "timed_out", "died")


_OTHER = "the checkpoint is damaged or another version's: point LATEST to an earlier one, or begin anew"


@dataclass
class Progress:
    """Where a run stands; with the tensors of a checkpoint it is all that a run needs to go on."""

    step: int = 0
    prompts_drawn: int = 0
    seconds: float = 0.0
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    unfinished: dict[str, Any] | None = None
    """Of the step after `step`, where it was begun."""
    under_way: list[PromptGroup] = field(default_factory=list)
    """Groups that were begun and not trained on, on the first rank; not part of `record`."""
    drawing: dict[str, Any] | None = None
    """The tally of the step after `step`, where the run was stopped while it was drawn."""
    steps_without_signal: int = 0
    owes_evaluation: bool = False
    """The evaluation after `step` is due, and the run was stopped before it was done."""

    def record(self) -> dict[str, Any]:
        """What a checkpoint's manifest keeps."""
        return {name: value for name, value in vars(self).items() if name != "under_way"}

    @classmethod
    def of_record(cls, record: Mapping[str, Any], where: str) -> Progress:
        """What `record` kept; raises `CheckpointError` that names the field of `where` which is not what a run writes."""
        known = {each.name for each in fields(cls)} - {"under_way"}
        if unknown := sorted(set(record) - known):
            raise CheckpointError(f"{where} has progress.{unknown[0]}, which this version does not know", hint=_OTHER)
        check = _Checked(where)
        for name in ("step", "prompts_drawn"):
            check.count(f"progress.{name}", record.get(name))
        check.count("progress.steps_without_signal", record.get("steps_without_signal", 0))
        check.flag("progress.owes_evaluation", record.get("owes_evaluation", False))
        check.size("progress.seconds", record.get("seconds", 0.0))
        for name in ("before", "after"):
            if record.get(name) is not None:
                check.metrics(f"progress.{name}", record[name])
        if record.get("unfinished") is not None:
            _check_unfinished(check, record["unfinished"])
        if record.get("drawing") is not None:
            _check_drawing(check, record["drawing"])
        return cls(**record)


@dataclass(frozen=True)
class _Checked:
    """Refusals of a record's values, each by its field."""

    where: str

    def refuse(self, name: str, value: Any, what: str) -> NoReturn:
        shown = repr(value)
        raise CheckpointError(
            f"{self.where} has {name}={shown if len(shown) <= 60 else shown[:60] + '...'}, which is no {what}",
            hint=_OTHER,
        )

    def count(self, name: str, value: Any) -> None:
        if type(value) is not int or not 0 <= value <= _MOST:
            self.refuse(name, value, "count")

    def flag(self, name: str, value: Any) -> None:
        if not isinstance(value, bool):
            self.refuse(name, value, "true or false")

    def size(self, name: str, value: Any) -> None:
        if not _is_number(value) or not 0.0 <= value <= _MOST:
            self.refuse(name, value, "finite number of 0 or more")

    def metrics(self, name: str, value: Any) -> None:
        """Numbers by name; NaN stands for what was not measured."""
        if not isinstance(value, dict):
            self.refuse(name, value, "record of metrics")
        for key, number in value.items():
            if not _is_number(number):
                self.refuse(f"{name}.{key}", number, "number")


def _check_unfinished(check: _Checked, record: Any) -> None:
    if not isinstance(record, dict):
        check.refuse("progress.unfinished", record, "step that was begun")
    check.metrics("progress.unfinished.rollout_metrics", record.get("rollout_metrics"))
    for name in ("prompts_drawn", "trajectories"):
        check.count(f"progress.unfinished.{name}", record.get(name))
    updates = record.get("updates")
    if not isinstance(updates, list):
        check.refuse("progress.unfinished.updates", updates, "list of updates")
    for number, update in enumerate(updates):
        check.metrics(f"progress.unfinished.updates.{number}", update)
    if record.get("metrics") is not None:
        check.metrics("progress.unfinished.metrics", record["metrics"])


def _check_drawing(check: _Checked, record: Any) -> None:
    name = "progress.drawing"
    if not isinstance(record, dict) or set(record) - {*_TALLY, "reward", "failures"}:
        check.refuse(name, record, "tally")
    for count in _TALLY:
        check.count(f"{name}.{count}", record.get(count, 0))
    reward, failures = record.get("reward", 0.0), record.get("failures", {})
    if not _is_number(reward) or not math.isfinite(reward):
        check.refuse(f"{name}.reward", reward, "finite number")
    if not isinstance(failures, dict) or set(failures) - {*_FAILURES, "example"}:
        check.refuse(f"{name}.failures", failures, "record of failures")
    for count in _FAILURES:
        check.count(f"{name}.failures.{count}", failures.get(count, 0))
    if not isinstance(failures.get("example", ""), str):
        check.refuse(f"{name}.failures.example", failures["example"], "text")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
