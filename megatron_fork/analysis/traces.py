"""Traced trajectories of runs of earlier versions, a line of JSON each: every response token with its entropy, its log-prob and
whether it carried gradient. Runs write Parquet today (docs/traces.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from megatron_fork.analysis.json_lines import AnalysisError, JsonLine, read_json_lines

KINDS = ("trained", "without_signal", "evaluation")
PER_TOKEN = ("tokens", "entropy", "selected", "logprob")
T = TypeVar("T")


@dataclass(frozen=True)
class Trace:
    """One trajectory; `tokens`, `entropy` (nats), `selected` and `logprob` (nats) have one entry for each response token.

    The entropy is known only for a trained one: the others have NaN, and none of their tokens is selected.
    """

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
    reason: str = ""
    """The verifier's reason; runs of earlier versions did not keep it."""
    kind: str = "trained"
    number: int | None = None
    """Its place in the rollouts of the step."""


@dataclass(frozen=True)
class Traces:
    """Trajectories by step, in order of steps; `truncated` names files with a half-written last line.

    `by_step` were trained on, `without_signal` are from steps with nothing to train on, `evaluations` are held out.
    """

    by_step: dict[int, list[Trace]]
    without_signal: dict[int, list[Trace]]
    evaluations: dict[int, list[Trace]]
    truncated: list[str]


def read_traces(folder: Path) -> Traces:
    """Read the files of a folder that may be missing. Raise AnalysisError for a line that is not a trajectory."""
    traces: list[Trace] = []
    truncated: list[str] = []
    for path in sorted([*folder.glob("step-*.jsonl"), *folder.glob("evaluation-*.jsonl")]):
        written = read_json_lines(path)
        traces.extend(trace_of(line) for line in written.lines)
        if written.truncated:
            truncated.append(path.name)
    by_kind: dict[str, dict[int, list[Trace]]] = {kind: {} for kind in KINDS}
    for trace in sorted(traces, key=lambda trace: trace.step):
        by_kind[trace.kind].setdefault(trace.step, []).append(trace)
    return Traces(by_kind["trained"], by_kind["without_signal"], by_kind["evaluation"], truncated)


def trace_of(line: JsonLine) -> Trace:
    # Earlier versions traced only trained trajectories, and wrote no kind.
    kind = line.one_of("kind", KINDS) if "kind" in line.fields else "trained"
    tokens = line.texts("tokens")
    trained = kind == "trained"
    trace = Trace(
        step=line.whole("step"),
        prompt=line.text("prompt"),
        answer=line.text("answer"),
        tokens=tokens,
        entropy=line.numbers("entropy") if trained else [math.nan] * len(tokens),
        selected=line.flags("selected") if trained else [False] * len(tokens),
        logprob=line.numbers("logprob"),
        reward=required_number(line, "reward"),
        advantage=line.number("advantage"),
        finish_reason=line.text("finish_reason"),
        reason=line.text("reason") if "reason" in line.fields else "",
        kind=kind,
        number=None if line.fields.get("number") is None else line.whole("number"),
    )
    for name in PER_TOKEN if trained else ("logprob",):
        length = len(line.fields[name])
        if length != len(trace.tokens):
            raise AnalysisError(f"{line.where}: field {name!r} has {length} entries for {len(trace.tokens)} tokens")
    return trace


def required_number(line: JsonLine, name: str) -> float:
    value = line.number(name)
    if value is None:
        raise AnalysisError(f"{line.where}: field {name!r} is missing or null, not a number")
    return value


def mixture(responses: Sequence[T], count: int, is_right: Callable[[T], bool]) -> list[T]:
    """At most `count` of the responses, in order, spread evenly over the right ones and over the wrong ones."""
    right = [place for place, response in enumerate(responses) if is_right(response)]
    wrong = [place for place, response in enumerate(responses) if not is_right(response)]
    of_right = min(len(right), max(count // 2, count - len(wrong)))
    places = spread(right, of_right) + spread(wrong, min(len(wrong), count - of_right))
    return [responses[place] for place in sorted(places)]


def spread(places: Sequence[int], count: int) -> list[int]:
    """`count` of the places, at most all of them, at equal distances from the first on."""
    return [places[number * len(places) // count] for number in range(count)]
