"""What the processes of the benchmark do: compare results, take times in turns, take one contender's peak."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from head import contenders, logits, peers, problem
from head.contenders import Contender
from head.measure import peak_mebibytes, timed
from head.problem import Shape
from head.processes import run_on_ranks

_WARM_UP_TOKENS = 64
# Of the largest value. bf16 logits alone are off by half a percent of a nat or two.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}


@dataclass(frozen=True)
class Suite:
    """One kind of work: its inputs, its results in float64, and who does it."""

    build: Callable[[Shape, int], Any]
    reference: Callable[[Shape, int], dict[str, Tensor]]
    contenders: Callable[[], list[Contender]]

    def chosen(self, keys: list[str], shape: Shape) -> list[Contender]:
        """The named contenders (if none is: those that run by default) that have something of their own to show here."""
        named = [each for each in self.contenders() if (each.key in keys if keys else each.by_default)]
        return [contender for contender in named if shape.share < 1 or not contender.handed_rows]


SUITES = {
    "head": Suite(
        problem.build,
        problem.reference,
        lambda: [*contenders.own(), *peers.peers()],
    ),
    "statistics": Suite(logits.build, logits.reference, logits.contenders),
}


@dataclass
class Outcome:
    """What is known of one contender at one shape. A round is phase -> (wall seconds, processor seconds)."""

    label: str
    unavailable: str | None = None
    differences: dict[str, float] = field(default_factory=dict)
    rounds: list[dict[str, tuple[float, float]]] = field(default_factory=list)
    peaks_mebibytes: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def total(self, index: int, measure: int) -> float:
        """Wall (measure 0) or processor (1) seconds of one round."""
        return sum(seconds[measure] for seconds in self.rounds[index].values())

    def median_total(self, measure: int) -> float:
        return statistics.median(self.total(index, measure) for index in range(len(self.rounds)))

    def median_phase(self, phase: str) -> float:
        return statistics.median(seconds[phase][0] for seconds in self.rounds)

    def over(self, floor: Outcome, measure: int) -> float:
        """Median over rounds of this contender's seconds in terms of the floor's in the same round."""
        ratios = [self.total(index, measure) / floor.total(index, measure) for index in range(len(self.rounds))]
        return statistics.median(ratios)

    def is_wrong(self, dtype: str) -> bool:
        return any(not difference <= TOLERANCE[dtype] for difference in self.differences.values())


def _reason(error: BaseException) -> str:
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0]}" if words else type(error).__name__


@contextmanager
def _recorded(outcome: Outcome) -> Iterator[Outcome]:
    """Nothing more from a contender that could not; an error becomes its reason. It must arise on all ranks alike."""
    try:
        yield outcome
    except Exception as error:
        outcome.unavailable = _reason(error)
        outcome.rounds = []


def _compare(suite: Suite, found: list[Contender], shape: Shape, rank: int) -> dict[str, Outcome]:
    small = suite.build(shape.small(), rank)
    expected = suite.reference(shape.small(), rank)
    outcomes = {contender.key: Outcome(contender.label) for contender in found}
    for contender in found:
        with _recorded(outcomes[contender.key]) as outcome:
            for name, result in contender.results(small).items():
                distance = (result.double() - expected[name]).abs().max() / expected[name].abs().max()
                outcome.differences[name] = distance.item()
    return outcomes


def _able(found: list[Contender], outcomes: dict[str, Outcome]) -> list[Contender]:
    return [contender for contender in found if outcomes[contender.key].unavailable is None]


def times_on_rank(rank: int, name: str, shape: Shape, keys: list[str], rounds: int) -> dict[str, Outcome]:
    """What `times` asks of each rank, within the process groups that it has joined."""
    suite = SUITES[name]
    found = suite.chosen(keys, shape)
    outcomes = _compare(suite, found, shape, rank)
    inputs = suite.build(shape, rank)
    for contender in _able(found, outcomes):
        with _recorded(outcomes[contender.key]):
            contender.prepare(inputs)
            for phase in contender.phases(inputs.first(_WARM_UP_TOKENS)).values():
                phase()
            outcomes[contender.key].notes = contender.notes()
    for _ in range(rounds):
        for contender in _able(found, outcomes):
            with _recorded(outcomes[contender.key]) as outcome:
                phases = contender.phases(inputs)
                outcome.rounds.append({phase: timed(work, shape.device) for phase, work in phases.items()})
    return outcomes


def peaks_on_rank(rank: int, name: str, shape: Shape, key: str) -> dict[str, float] | str:
    """What `peaks` asks of each rank: MiB by phase, or why there are none."""
    suite = SUITES[name]
    (contender,) = suite.chosen([key], shape)
    small = suite.build(shape.small(), rank)
    try:
        for phase in contender.phases(small).values():
            phase()
    except Exception as error:
        return _reason(error)
    inputs = suite.build(shape, rank)
    contender.prepare(inputs)
    return {phase: peak_mebibytes(work, shape.device) for phase, work in contender.phases(inputs).items()}


def times(name: str, shape: Shape, keys: list[str], rounds: int) -> dict[str, Outcome]:
    """Every contender in turn, `rounds` times, in one process a rank: wall of the slowest rank, processor of all."""
    ranks = run_on_ranks(times_on_rank, shape.tensor, shape.device, name, shape, keys, rounds)
    outcomes: dict[str, Outcome] = ranks[0]
    for key, outcome in outcomes.items():
        others = [rank[key] for rank in ranks]
        for result in outcome.differences:
            outcome.differences[result] = max(other.differences[result] for other in others)
        for index, seconds in enumerate(outcome.rounds):
            for phase in seconds:
                laps = [other.rounds[index][phase] for other in others]
                seconds[phase] = (max(wall for wall, _ in laps), sum(processor for _, processor in laps))
    return outcomes


def peaks(name: str, shape: Shape, keys: list[str]) -> dict[str, Outcome]:
    """Every contender's peak over its inputs, each in processes of its own; the largest over ranks."""
    outcomes = {}
    for contender in SUITES[name].chosen(keys, shape):
        outcome = outcomes[contender.key] = Outcome(contender.label)
        try:
            ranks = run_on_ranks(peaks_on_rank, shape.tensor, shape.device, name, shape, contender.key)
        except (ProcessExitedException, ProcessRaisedException) as error:
            outcome.unavailable = str(error).strip().splitlines()[-1]
            continue
        if isinstance(ranks[0], str):
            outcome.unavailable = ranks[0]
        else:
            outcome.peaks_mebibytes = {phase: max(rank[phase] for rank in ranks) for phase in ranks[0]}
    return outcomes
