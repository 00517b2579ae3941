"""What k samples of a prompt tell about the model: avg@k, pass@k, maj@k, and intervals over prompts.

All are means over prompts of a value of each prompt. `n` responses to a prompt were drawn, of which k are asked about: values
are expectations over all subsets of k of them, so that they do not depend on which came first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_fork.errors import EvaluationError

Values = np.ndarray[Any, np.dtype[np.float64]]

# Above so many responses a majority of some of them is estimated from random subsets; below it is exact.
MOST_EXACT = 128
SUBSETS = 4096
RESAMPLES = 10_000
LEVEL = 0.95
_ENTRIES = 1 << 22


def check_k(k: int, samples: int, what: str) -> None:
    """Raise `EvaluationError` if there are fewer than `k` samples; `what` names what asks for k."""
    if not 1 <= k <= samples:
        raise EvaluationError(
            f"{what} of {samples} samples a prompt" if k > samples else f"{what}: k is at least 1",
            hint=f"draw at least {k} samples a prompt, or ask for k up to {samples}",
        )


def pass_at_k(right: Sequence[int], samples: int, k: int) -> Values:
    """`[prompts]`: the probability that at least one of k of a prompt's responses, without replacement, is right.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of arXiv 2107.03374, as a product, for n of any size.

    Args:
        right: `[prompts]`, how many of each prompt's responses are right.
        samples: n, responses to each prompt.
        k: at most `samples`; raises `EvaluationError` otherwise.

    """
    check_k(k, samples, f"pass@{k}")
    counts = np.asarray(right, dtype=np.int64)
    if counts.size and not (counts.min() >= 0 and counts.max() <= samples):
        raise EvaluationError(f"{counts.max()} right ones of {samples} samples", hint="count each response once")
    # C(n - c, k) / C(n, k): the product over i < c of (n - k - i) / (n - i), which is 0 where n - k < c.
    logs = np.full(samples + 1, -np.inf)
    logs[0] = 0.0
    for wrong in range(samples - k):
        logs[wrong + 1] = logs[wrong] + math.log1p(-k / (samples - wrong))
    return -np.expm1(logs[counts])


def majority_at_k(
    votes: Sequence[int], right: Sequence[float], samples: int, k: int, *, seed: int = 0
) -> tuple[float, bool]:
    """(probability that the most frequent answer of k of a prompt's responses is right, whether it is exact).

    Answers that are equally frequent count as one drawn among them. Responses without an answer have no vote; if none of the k
    has one, the majority is wrong.

    Args:
        votes: how many of the responses state each answer; their sum is at most `samples`.
        right: for each answer whether it is right, 0 to 1.
        samples: n, all responses to the prompt, those without an answer among them.
        k: at most `samples`; raises `EvaluationError` otherwise. Of more than `MOST_EXACT` samples `SUBSETS`
            random subsets are taken in place of all.
        seed: of the subsets.

    """
    check_k(k, samples, f"maj@{k}")
    if sum(votes) > samples or min(votes, default=1) < 1:
        raise EvaluationError(
            f"{sum(votes)} votes of {samples} samples", hint="each response states one answer or none"
        )
    silent = samples - sum(votes)
    if not votes or not any(right):
        return 0.0, True
    if all(value == 1.0 for value in right):  # wrong only where nobody votes
        return 1.0 - _share_of(silent, samples, k), True
    if k == samples:
        most = max(votes)
        return math.fsum(r for v, r in zip(votes, right, strict=True) if v == most) / list(votes).count(most), True
    if k == 1:
        return math.fsum(v * r for v, r in zip(votes, right, strict=True)) / samples, True
    if samples <= MOST_EXACT:
        return _exact_majority(votes, right, samples, k), True
    return _sampled_majority(votes, right, silent, k, seed), False


def _share_of(part: int, whole: int, k: int) -> float:
    """The share of subsets of k of `whole` that lie within a part of it."""
    return math.prod((part - i) / (whole - i) for i in range(k)) if part >= k else 0.0


def _exact_majority(votes: Sequence[int], right: Sequence[float], samples: int, k: int) -> float:
    """Sum over how many votes an answer gets, and how many others get as many, of the subsets in which that is so."""
    silent, total = samples - sum(votes), 0.0
    for place, (own, value) in enumerate(zip(votes, right, strict=True)):
        others = [*votes[:place], *votes[place + 1 :]]
        for most in range(1, min(own, k) + 1) if value else ():
            by_ties = _subsets(others, silent, k - most, most)
            ways = sum(count / (ties + 1) for ties, count in enumerate(by_ties))
            total += value * math.comb(own, most) * ways
    return float(total / math.comb(samples, k))


def _subsets(votes: Sequence[int], silent: int, size: int, most: int) -> Values:
    """`[ties]`: subsets of `size` responses in which so many answers have `most` votes, and no answer has more."""
    ways = np.zeros((size // most + 1, size + 1))
    ways[0] = [math.comb(silent, taken) for taken in range(size + 1)]
    for count in votes:
        found = np.zeros_like(ways)
        for taken in range(min(count, most - 1, size) + 1):
            found[:, taken:] += math.comb(count, taken) * ways[:, : size + 1 - taken]
        if most <= min(count, size):
            found[1:, most:] += math.comb(count, most) * ways[:-1, : size + 1 - most]
        ways = found
    return ways[:, size]


def _sampled_majority(votes: Sequence[int], right: Sequence[float], silent: int, k: int, seed: int) -> float:
    generator = _generator(seed)
    drawn = generator.multivariate_hypergeometric([*votes, silent], k, size=SUBSETS, method="marginals")[:, :-1]
    most = drawn.max(axis=1, keepdims=True)
    is_most = (drawn == most) & (most > 0)
    shares = (is_most @ np.asarray(right)) / np.maximum(1, is_most.sum(axis=1))
    return float(shares.mean())


def bootstrap_interval(
    values: Sequence[float] | Values, *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean over prompts: prompts are drawn again with replacement.

    Args:
        values: `[prompts]`, one value each; raises `EvaluationError` if there are none.
        seed: of the draws; the same values and seed give the same interval.
        resamples: how often they are drawn.
        level: share of the interval, of all draws' means.

    """
    (interval,) = bootstrap_intervals([values], seed=seed, resamples=resamples, level=level)
    return interval


def bootstrap_intervals(
    columns: Sequence[Sequence[float] | Values], *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> list[tuple[float, float]]:
    """`bootstrap_interval` of each column of values of the same prompts: they share the draws, which cost most."""
    known = np.asarray(columns, dtype=np.float64)
    prompts = known.shape[1]
    if not prompts:
        raise EvaluationError("there is no prompt to estimate from", hint="give at least one prompt")
    generator = _generator(seed)
    a_time = max(1, _ENTRIES // prompts)
    means = []
    for first in range(0, resamples, a_time):
        draws = min(a_time, resamples - first)
        drawn = generator.integers(prompts, size=(draws, prompts))
        drawn += prompts * np.arange(draws)[:, None]
        times = np.bincount(drawn.ravel(), minlength=draws * prompts).reshape(draws, prompts)
        means.append(times.astype(np.float64) @ known.T / prompts)
    tails = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [(float(low), float(high)) for low, high in tails.T]


def _generator(seed: int) -> np.random.Generator:
    """Of any seed that a run may have, also a negative one, which NumPy does not take."""
    return np.random.default_rng(seed % (1 << 64))


def standard_error(values: Sequence[float] | Values) -> float:
    """Of the mean over prompts; NaN for a single prompt."""
    known = np.asarray(values, dtype=np.float64)
    return float(known.std(ddof=1) / math.sqrt(known.size)) if known.size > 1 else math.nan
