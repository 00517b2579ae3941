"""Each estimator is what it is defined as: the mean over all subsets of k responses, and an interval that covers as it says."""

import math
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fork.errors import EvaluationError
from megatron_fork.evaluation import bootstrap_interval, bootstrap_intervals, majority_at_k, pass_at_k, standard_error
from megatron_fork.evaluation.estimators import MOST_EXACT


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one() -> None:
    for samples in range(1, 8):
        for right, k in product(range(samples + 1), range(1, samples + 1)):
            responses = [place < right for place in range(samples)]
            subsets = list(combinations(responses, k))
            share = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k([right], samples, k)[0] == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("samples", [32, 1000, 10_000])
def test_pass_at_k_of_many_samples(samples: int) -> None:
    """Against whole numbers of any length, where neither factor fits a float."""
    for right, k in [(1, 1), (1, samples), (3, samples // 2), (samples // 3, 8), (samples - 1, 2), (samples, 1)]:
        exact = 1 - math.comb(samples - right, k) / math.comb(samples, k) if samples < 1000 else None
        if exact is None:
            from fractions import Fraction

            exact = float(1 - Fraction(math.comb(samples - right, k), math.comb(samples, k)))
        assert pass_at_k([right], samples, k)[0] == pytest.approx(exact, rel=1e-9)


def by_brute_force(answers: list[int | None], right: dict[int, float], k: int) -> float:
    shares = []
    for subset in combinations(answers, k):
        votes = Counter(answer for answer in subset if answer is not None)
        most = [answer for answer, count in votes.items() if count == max(votes.values())]
        shares.append(sum(right[answer] for answer in most) / len(most) if most else 0.0)
    return sum(shares) / len(shares)


@given(
    answers=st.lists(st.one_of(st.none(), st.integers(0, 4)), min_size=1, max_size=9),
    rights=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=5, max_size=5),
    share=st.floats(0, 1),
)
def test_majority_is_that_of_all_subsets(answers: list[int | None], rights: list[float], share: float) -> None:
    k = 1 + round(share * (len(answers) - 1))
    votes = Counter(answer for answer in answers if answer is not None)
    found, is_exact = majority_at_k(list(votes.values()), [rights[answer] for answer in votes], len(answers), k)
    assert is_exact
    assert found == pytest.approx(by_brute_force(answers, dict(enumerate(rights)), k), abs=1e-9)


def test_a_tie_is_decided_by_lot() -> None:
    assert majority_at_k([2, 2], [1.0, 0.0], 4, 4) == (0.5, True)
    assert majority_at_k([1, 1, 1], [1.0, 0.0, 0.0], 3, 3)[0] == pytest.approx(1 / 3)
    assert majority_at_k([], [], 4, 2) == (0.0, True)
    assert majority_at_k([1], [1.0], 4, 2)[0] == pytest.approx(0.5)  # the others state no answer


def test_random_subsets_agree_with_all_of_them() -> None:
    votes, right = [30, 28, 25, 20], [0.0, 1.0, 0.0, 0.0]
    exact, _ = majority_at_k(votes, right, 120, 12)
    scaled = MOST_EXACT // 120 + 1
    sampled, is_exact = majority_at_k([v * scaled for v in votes], right, 120 * scaled, 12)
    assert not is_exact
    assert sampled == pytest.approx(exact, abs=0.04)  # four standard errors of 4096 subsets, and the finite pool
    assert sampled == majority_at_k([v * scaled for v in votes], right, 120 * scaled, 12)[0]


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Of 400 evaluations of 60 problems with a known mean, about 95 % of the intervals contain it."""
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(400):
        difficulty = generator.beta(0.8, 1.2, size=60)  # its mean is 0.4
        averages = generator.binomial(8, difficulty) / 8
        low, high = bootstrap_interval(averages, seed=seed, resamples=1000)
        covered += low <= 0.4 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_the_interval_is_that_of_all_resamples() -> None:
    """Three prompts have 27 equally likely resamples, whose quantiles the draws reach."""
    values = [0.0, 0.25, 1.0]
    means = sorted(sum(each) / 3 for each in product(values, repeat=3))
    low, high = bootstrap_interval(values, seed=1, level=0.8)
    assert (low, high) == pytest.approx((np.quantile(means, 0.1), np.quantile(means, 0.9)), abs=0.09)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval([0.5] * 7, seed=0) == (0.5, 0.5)


@pytest.mark.parametrize("seed", [-1, -(1 << 63), (1 << 64) - 1])
def test_any_seed_of_a_run_is_one_of_the_estimates(seed: int) -> None:
    low, high = bootstrap_interval([0.0, 0.5, 1.0], seed=seed, resamples=100)
    assert low <= high and (low, high) == bootstrap_interval([0.0, 0.5, 1.0], seed=seed, resamples=100)
    assert 0 <= majority_at_k([90, 80, 70], [1.0, 0.0, 0.0], 256, 16, seed=seed)[0] <= 1


@given(values=st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=4), seed=st.integers())
def test_intervals_of_several_estimates_are_those_of_each(values: list[list[float]], seed: int) -> None:
    together = bootstrap_intervals(values, seed=seed, resamples=50)
    assert together == [pytest.approx(bootstrap_interval(each, seed=seed, resamples=50)) for each in values]


def test_the_error_is_that_of_prompts() -> None:
    assert standard_error([0.75, 0.0, 0.5]) == pytest.approx(np.std([0.75, 0.0, 0.5], ddof=1) / math.sqrt(3))
    assert math.isnan(standard_error([1.0]))


def test_what_cannot_be_estimated_is_refused_by_name() -> None:
    with pytest.raises(EvaluationError, match="pass@8 of 4 samples a prompt") as refused:
        pass_at_k([1], 4, 8)
    assert "at least 8 samples" in refused.value.hint
    with pytest.raises(EvaluationError, match="maj@8 of 4 samples a prompt"):
        majority_at_k([2], [1.0], 4, 8)
    with pytest.raises(EvaluationError, match="pass@0"):
        pass_at_k([1], 4, 0)
    with pytest.raises(EvaluationError, match="no prompt"):
        bootstrap_interval([], seed=0)
    with pytest.raises(EvaluationError, match="5 right ones of 4"):
        pass_at_k([5], 4, 1)
