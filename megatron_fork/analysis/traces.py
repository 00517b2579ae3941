"""Traced trajectories: every response token with its entropy, its log-prob and whether it carried gradient."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_fork.analysis.json_lines import AnalysisError, JsonLine, read_json_lines

PER_TOKEN = ("tokens", "entropy", "selected", "logprob")


@dataclass(frozen=True)
class Trace:
    """One trajectory; `tokens`, `entropy` (nats), `selected` and `logprob` (nats) have one entry a response token."""

    step: int
    prompt: str
    answer: str
    tokens: list[str]
    entropy: list[float]
    selected: list[bool]
    logprob: list[float]
    reward: float
    advantage: float | None
    finish_reason: str


@dataclass(frozen=True)
class Traces:
    """The trajectories of each traced step, steps rising; `truncated` names files with a half-written last line."""

    by_step: dict[int, list[Trace]]
    truncated: list[str]

    def all(self) -> list[Trace]:
        """Return the trajectories of every traced step."""
        return [trace for traces in self.by_step.values() for trace in traces]


def read_traces(folder: Path) -> Traces:
    """Read `step-*.jsonl` of a folder that may be missing. Raise AnalysisError for a line that is no trajectory."""
    traces: list[Trace] = []
    truncated: list[str] = []
    for path in sorted(folder.glob("step-*.jsonl")):
        written = read_json_lines(path)
        traces.extend(trace_of(line) for line in written.lines)
        if written.truncated:
            truncated.append(path.name)
    by_step: dict[int, list[Trace]] = {step: [] for step in sorted({trace.step for trace in traces})}
    for trace in traces:
        by_step[trace.step].append(trace)
    return Traces(by_step, truncated)


def trace_of(line: JsonLine) -> Trace:
    trace = Trace(
        step=line.step(),
        prompt=line.text("prompt"),
        answer=line.text("answer"),
        tokens=line.texts("tokens"),
        entropy=line.numbers("entropy"),
        selected=line.flags("selected"),
        logprob=line.numbers("logprob"),
        reward=required_number(line, "reward"),
        advantage=line.number("advantage"),
        finish_reason=line.text("finish_reason"),
    )
    for name in PER_TOKEN:
        length = len(line.fields[name])
        if length != len(trace.tokens):
            raise AnalysisError(f"{line.where}: field {name!r} has {length} entries for {len(trace.tokens)} tokens")
    return trace


def required_number(line: JsonLine, name: str) -> float:
    value = line.number(name)
    if value is None:
        raise AnalysisError(f"{line.where}: field {name!r} is missing or null, not a number")
    return value
