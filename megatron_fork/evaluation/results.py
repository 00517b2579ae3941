"""What the responses of an evaluation say: the numbers of each set with their intervals, and of each problem."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_fork.errors import EvaluationError
from megatron_fork.evaluation.estimators import (
    LEVEL,
    RESAMPLES,
    Values,
    bootstrap_intervals,
    check_k,
    majority_at_k,
    pass_at_k,
    standard_error,
)
from megatron_fork.evaluation.problems import Problem
from megatron_fork.evaluation.votes import Ballot, ballots
from megatron_fork.rewards import RewardPool, answer_in, read_reference, states_answers
from megatron_fork.traces import Traces

COLUMNS = ("set", "prompt_id", "sample", "reward", "response", "failure", "finish_reason", "entropy")


@dataclass
class Outcomes:
    """Of one problem's responses, by sample: reward, length in tokens, whether cut, failure of the verifier, answer."""

    rewards: dict[int, float] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    cut: int = 0
    failures: int = 0
    answers: dict[int, str | None] = field(default_factory=dict)
    entropy: float = 0.0
    """Sum over all tokens, nats; NaN if it was not computed."""


def gather(parts: Iterable[Traces], *, kinds: Mapping[str, str]) -> dict[tuple[str, str], Outcomes]:
    """The outcomes of all responses by (set, problem). One that is there twice counts once.

    `kinds`: of the verifier of each set.
    """
    found: dict[tuple[str, str], Outcomes] = {}
    stating = {name for name, kind in kinds.items() if states_answers(kind)}
    for part in parts:
        columns = zip(*(part.values(name) for name in COLUMNS), part.lengths.tolist(), strict=True)
        for name, problem, sample, reward, response, failure, finish, entropy, length in columns:
            outcomes = found.setdefault((name, problem), Outcomes())
            if sample in outcomes.rewards:
                continue
            outcomes.rewards[sample] = 0.0 if reward is None else reward
            outcomes.tokens[sample] = length
            outcomes.cut += finish == "length"
            outcomes.failures += failure is not None
            outcomes.answers[sample] = answer_in(response, kinds[name]) if name in stating else None
            outcomes.entropy += math.nan if entropy is None else math.fsum(entropy)
    return found


def powers(samples: int) -> list[int]:
    """1, 2, 4 ... up to `samples`, and that itself."""
    return sorted({1 << place for place in range(samples.bit_length())} | {samples})


def results_of_set(
    problems: Sequence[Problem],
    outcomes: Mapping[tuple[str, str], Outcomes],
    pool: RewardPool,
    *,
    samples: int,
    ks: Sequence[int],
    seed: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(numbers of a set, a row a problem).

    Args:
        problems: of the set, in the order of the rows.
        outcomes: by (set, problem).
        pool: of the verifier, which says which answers are equal.
        samples: responses that each problem must have; raises `EvaluationError` otherwise.
        ks: of pass@k and maj@k; none above `samples`, else `EvaluationError`.
        seed: of the intervals.

    """
    for k in ks:
        check_k(k, samples, f"pass@{k}")
    mine = [_complete(problem, outcomes, samples) for problem in problems]
    right = [sum(reward > 0 for reward in each.rewards.values()) for each in mine]
    average = [math.fsum(each.rewards.values()) / samples for each in mine]
    voted = states_answers(pool.config.verifier)
    votes = ballots(
        [[(each.answers[sample], each.rewards[sample]) for sample in range(samples)] for each in mine] if voted else [],
        pool,
    )
    passed = {k: pass_at_k(right, samples, k) for k in ks}
    majority = {k: [majority_at_k(each.votes, each.right, samples, k, seed=seed) for each in votes] for k in ks}
    tokens = [sum(each.tokens.values()) for each in mine]
    voting = ks if voted else ()
    columns: list[Sequence[float] | Values] = [
        average,
        *(passed[k] for k in ks),
        *([value for value, _ in majority[k]] for k in voting),
    ]
    found = iter(estimates(columns, seed))
    numbers: dict[str, Any] = {
        "problems": len(mine),
        "samples": samples,
        "responses": len(mine) * samples,
        "avg": {"k": samples, **next(found)},
        "pass": {str(k): next(found) for k in ks},
        "maj": {str(k): {**next(found), "exact": all(e for _, e in majority[k])} for k in voting} if voted else None,
        "solved": sum(count > 0 for count in right),
        "response_tokens": {"mean": sum(tokens) / len(mine) / samples, **_quantiles(mine)},
        "cut": sum(each.cut for each in mine) / len(mine) / samples,
        "no_answer": sum(answer is None for each in mine for answer in each.answers.values()) / len(mine) / samples
        if voted
        else None,
        "failed": sum(each.failures for each in mine) / len(mine) / samples,
        "entropy": _finite(math.fsum(each.entropy for each in mine) / max(1, sum(tokens))),
    }
    rows = [
        _row(problem, each, samples, right[place], average[place])
        | {f"pass@{k}": float(passed[k][place]) for k in ks}
        | ({f"maj@{k}": majority[k][place][0] for k in ks} | _top(votes[place]) if voted else {})
        for place, (problem, each) in enumerate(zip(problems, mine, strict=True))
    ]
    return numbers, rows


def estimates(columns: Sequence[Sequence[float] | Values], seed: int) -> list[dict[str, Any]]:
    """Of each column of values of the same problems the mean, its standard error and its interval."""
    intervals = bootstrap_intervals(columns, seed=seed)
    return [
        {"value": float(np.mean(values)), "se": _finite(standard_error(values)), "interval": list(interval)}
        for values, interval in zip(columns, intervals, strict=True)
    ]


def interval_in_words() -> str:
    """How the intervals were made."""
    return f"{LEVEL:.0%} percentile bootstrap over problems, {RESAMPLES:,} resamples"


def _complete(problem: Problem, outcomes: Mapping[tuple[str, str], Outcomes], samples: int) -> Outcomes:
    found = outcomes.get((problem.set, problem.id), Outcomes())
    lacking = set(range(samples)) - found.rewards.keys()
    if lacking:
        raise EvaluationError(
            f"problem {problem.id} of {problem.set} has {samples - len(lacking)} of {samples} responses",
            hint="start the command again: it goes on from what is there",
        )
    return found


def _quantiles(mine: Sequence[Outcomes]) -> dict[str, float]:
    lengths = np.asarray([length for each in mine for length in each.tokens.values()])
    return {"median": float(np.median(lengths)), "p95": float(np.quantile(lengths, 0.95)), "max": int(lengths.max())}


def _row(problem: Problem, each: Outcomes, samples: int, right: int, average: float) -> dict[str, Any]:
    return {
        "set": problem.set,
        "prompt_id": problem.id,
        "prompt": problem.prompt.text,
        "answer": str(read_reference(problem.prompt.answer)),
        "samples": samples,
        "right": right,
        f"avg@{samples}": average,
        "response_tokens": sum(each.tokens.values()) / samples,
        "cut": each.cut / samples,
        "failed": each.failures,
        "entropy": _finite(each.entropy / max(1, sum(each.tokens.values()))),
    }


def _top(ballot: Ballot) -> dict[str, Any]:
    return {"answers": [[answer, count] for answer, count in zip(ballot.answers[:5], ballot.votes, strict=False)]}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
