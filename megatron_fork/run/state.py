"""The state of a run: together with a checkpoint's tensors, all it needs to continue as if it had never stopped.

A checkpoint's manifest keeps `RunState.record`; prompt groups in flight and the trajectories of a partial step are large and
are kept in files beside it (see `step_files`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, NotRequired, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from megatron_fork.errors import CheckpointError
from megatron_fork.experience import Trajectory
from megatron_fork.policy import StepResult
from megatron_fork.rewards import Failures
from megatron_fork.rollout import PromptGroup, RolloutCounts, SignalShare

DAMAGED = "the checkpoint is damaged or from another version: point LATEST to an earlier one, or start over"
# No count of a run is larger; a larger one was written by something else.
MOST = 10**12
_Count = Annotated[int, Field(ge=0, le=MOST)]
_Size = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]
_Metrics = dict[str, float]
_exact = with_config(ConfigDict(strict=True, extra="forbid"))


@_exact
class FailuresRecord(TypedDict, total=False):
    responses: _Count
    error: _Count
    timed_out: _Count
    died: _Count
    example: str


@_exact
class CountsRecord(TypedDict, total=False):
    drawn: _Count
    judged: _Count
    kept: _Count
    rounds: _Count
    reward: Annotated[float, Field(allow_inf_nan=False)]
    failures: FailuresRecord


@_exact
class SignalRecord(TypedDict):
    judged: _Size
    kept: _Size


@_exact
class PartialRecord(TypedDict):
    counts: CountsRecord
    trajectories: _Count | None
    """How many there are in the files; None while they are collected."""
    rollout_metrics: _Metrics
    metrics: _Metrics | None
    """Of the step; None before its statistics pass."""
    updates: list[_Metrics]
    critic_updates: NotRequired[list[_Metrics]]


@_exact
class StateRecord(TypedDict, total=False):
    """What a manifest keeps of a run. A metric that was not measured is NaN."""

    step: _Count
    prompts_drawn: _Count
    seconds: _Size
    before: _Metrics | None
    after: _Metrics | None
    steps_without_signal: _Count
    owes_evaluation: bool
    skipped_in_a_row: dict[str, _Count]
    signal: SignalRecord
    partial: PartialRecord | None


_RECORD = TypeAdapter(StateRecord)


@dataclass
class PartialStep:
    """The unfinished step after the last whole one: its rollouts are being collected, or some of its updates are made."""

    counts: RolloutCounts
    trajectories: list[Trajectory] | None = None
    """With their advantages, ordered by number; None while they are collected."""
    rollout_metrics: dict[str, float] = field(default_factory=dict)
    result: StepResult = field(default_factory=StepResult)
    dropped: list[Trajectory] = field(default_factory=list)
    """From groups without signal, to be shown; a checkpoint does not keep them."""
    in_flight: list[PromptGroup] = field(default_factory=list)
    """As in `RunState`, but after this step's rollouts were taken; not part of `record` either."""
    is_saved: bool = False
    """A checkpoint holds it as it is: it was resumed and has not continued yet."""

    def record(self) -> PartialRecord:
        record: PartialRecord = {
            "counts": asdict(self.counts),  # type: ignore[typeddict-item]
            "trajectories": None if self.trajectories is None else len(self.trajectories),
            "rollout_metrics": self.rollout_metrics,
            "metrics": self.result.metrics if self.result.is_begun else None,
            "updates": self.result.updates,
        }
        if self.result.critic_updates:
            record["critic_updates"] = self.result.critic_updates
        return record


@dataclass
class RunState:
    """The last whole step, and at most one partial step after it."""

    step: int = 0
    """Finished trainer steps."""
    prompts_drawn: int = 0
    seconds: float = 0.0
    """That the run has taken, over all its starts."""
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    """Metrics of the first and the last evaluation."""
    steps_without_signal: int = 0
    owes_evaluation: bool = False
    """Whether the evaluation after `step` is due and not done yet."""
    skipped_in_a_row: dict[str, int] = field(default_factory=dict)
    """By network, how many of its updates up to now were not applied, also within the partial step."""
    signal: SignalShare = field(default_factory=SignalShare)
    """Of the groups that the finished steps judged."""
    partial: PartialStep | None = None
    in_flight: list[PromptGroup] = field(default_factory=list)
    """On the first rank: prompt groups that were begun but not trained on after `step`; not part of `record`."""

    @property
    def evaluated(self) -> int:
        """The last step whose evaluation, if one was due, is done; -1 where that before the first step is not."""
        return -1 if self.before is None else self.step - self.owes_evaluation

    def finish_step(self, *, is_evaluated: Callable[[int], bool]) -> None:
        """Make the partial step a whole one; `is_evaluated`: whether an evaluation is due after a step."""
        assert self.partial is not None
        self.step += 1
        counts = self.partial.counts
        self.prompts_drawn += counts.drawn
        self.signal = self.signal.after_step(counts.judged, counts.kept)
        self.in_flight, self.partial = self.partial.in_flight, None
        self.owes_evaluation = is_evaluated(self.step)

    def reached(self, steps: int) -> str:
        """How far the run got of its `steps`, in words."""
        if self.partial is None:
            return f"after step {self.step} of {steps}"
        if self.partial.trajectories is None:
            return f"while the rollouts of step {self.step + 1} of {steps} were collected"
        return f"within step {self.step + 1} of {steps}, after {len(self.partial.result.updates)} updates"

    def record(self) -> StateRecord:
        """What a checkpoint's manifest keeps."""
        record: StateRecord = {
            "step": self.step,
            "prompts_drawn": self.prompts_drawn,
            "seconds": self.seconds,
            "before": self.before,
            "after": self.after,
            "steps_without_signal": self.steps_without_signal,
            "owes_evaluation": self.owes_evaluation,
            "partial": self.partial.record() if self.partial else None,
        }
        if self.skipped_in_a_row:
            record["skipped_in_a_row"] = dict(self.skipped_in_a_row)
        if self.signal != SignalShare():
            record["signal"] = {"judged": self.signal.judged, "kept": self.signal.kept}
        return record


def is_due(step: int, every: int, last: int) -> bool:
    """Whether `step` is the last, or one of every `every` steps; `every=0` means only the last."""
    return step == last or (every > 0 and step % every == 0)


def checked(record: Mapping[str, Any], where: str) -> StateRecord:
    """The manifest's record; raises `CheckpointError` that names the first field of `where` that a run does not write so."""
    renamed = _renamed(record)
    try:
        _RECORD.validate_python({"step": None, "prompts_drawn": None, **renamed})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, ("progress", *first["loc"])))
        if first["type"] == "extra_forbidden":
            raise CheckpointError(f"{where} has {name}, which this version does not know", hint=DAMAGED) from error
        value = repr(first["input"])
        value = value if len(value) <= 60 else value[:60] + "..."
        raise CheckpointError(f"{where} has {name}={value}: {first['msg']}", hint=DAMAGED) from error
    return cast(StateRecord, renamed)  # not pydantic's copy: integers in the metrics stay integers when written again


def state_of(record: StateRecord) -> RunState:
    """The state without what is kept in files: trajectories, their columns, and groups in flight."""
    plain = dict(record)
    if "signal" in record:
        plain["signal"] = SignalShare(**record["signal"])
    partial = record.get("partial")
    if partial is not None:
        plain["partial"] = PartialStep(
            _counts_of(partial["counts"]),
            rollout_metrics=partial["rollout_metrics"],
            result=StepResult(
                partial["metrics"] or {}, list(partial["updates"]), list(partial.get("critic_updates", []))
            ),
        )
    return RunState(**plain)  # type: ignore[arg-type]


def _counts_of(record: CountsRecord) -> RolloutCounts:
    return RolloutCounts(**{**record, "failures": Failures(**record.get("failures", {}))})  # type: ignore[arg-type]


def _renamed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with today's names: the previous version called a partial step `unfinished`, or `drawing` while collected."""
    renamed = dict(record)
    unfinished, drawing = renamed.pop("unfinished", None), renamed.pop("drawing", None)
    if isinstance(unfinished, dict):
        renamed["partial"] = {
            "counts": {"drawn": unfinished.get("prompts_drawn")},
            **{name: unfinished.get(name) for name in unfinished.keys() - {"prompts_drawn"}},
        }
    elif drawing is not None:
        renamed["partial"] = {
            "counts": drawing,
            "trajectories": None,
            "rollout_metrics": {},
            "metrics": None,
            "updates": [],
        }
    elif unfinished is not None:
        renamed["partial"] = unfinished
    return renamed
