"""Each lens is what its paper defines, restated here the long way: explicit traces, exhaustive deletions, sums by hand."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.analysis import (
    TokenBudget,
    agreement,
    cross_rollout_deviation,
    divergence,
    gaussian_kernel,
    greedy_pruning,
    hsic,
    jaccard,
    normalised_cross_covariance,
    normalised_hsic,
    over_responses,
    peaks,
    resampling_importance,
    sentence_starts,
    spearman,
    tokens_to_read,
    top_share,
)

numbers = st.lists(st.integers(-4, 4).map(float), min_size=2, max_size=9)


def kernel_of(x: np.ndarray, sigma: float) -> np.ndarray:
    return np.array([[math.exp(-sum((a - b) ** 2) / (2 * sigma**2)) for b in x] for a in x])


@pytest.mark.parametrize("seed", range(4))
def test_hsic_is_the_trace_of_double_centred_kernels(seed: int) -> None:
    generator = np.random.default_rng(seed)
    n = 3 + seed * 4
    x, y = generator.normal(size=(n, 5)), generator.normal(size=(n, 2))
    k, l = kernel_of(x, 1.7), kernel_of(y, 0.6)  # noqa: E741
    h = np.eye(n) - np.ones((n, n)) / n
    np.testing.assert_allclose(gaussian_kernel(x, 1.7), k, atol=1e-12)
    assert hsic(k, l) == pytest.approx(np.trace(k @ h @ l @ h) / (n - 1) ** 2, rel=1e-9)
    own = [np.trace(each @ h @ each @ h) for each in (k, l)]
    assert normalised_hsic(k, l) == pytest.approx(np.trace(k @ h @ l @ h) / math.sqrt(own[0] * own[1]), rel=1e-9)
    assert normalised_hsic(k, k) == pytest.approx(1.0) and 0.0 <= normalised_hsic(k, l) <= 1.0
    assert math.isnan(normalised_hsic(k, np.ones((n, n))))


def test_without_a_bandwidth_it_is_the_median_distance() -> None:
    x = np.random.default_rng(3).normal(size=(7, 4))
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(x, 2)]
    np.testing.assert_allclose(gaussian_kernel(x), kernel_of(x, float(np.median(distances))), atol=1e-9)


def test_hsic_sees_dependence_that_correlation_does_not() -> None:
    x = np.random.default_rng(0).normal(size=(200, 1))
    other = np.random.default_rng(1).normal(size=(200, 1))
    dependent = normalised_hsic(gaussian_kernel(x), gaussian_kernel(x**2))
    assert dependent > 5 * normalised_hsic(gaussian_kernel(x), gaussian_kernel(other))


def test_the_authors_form_is_that_of_one_sided_centring() -> None:
    """tr(K_x H (K_x H + eps m)^-1 K_y H (K_y H + eps m)^-1), whose samples are the coordinates of two vectors, sigma 50."""
    generator = np.random.default_rng(2)
    states, answer = generator.normal(size=(3, 12)) * 9, generator.normal(size=12) * 9
    h = np.eye(12) - 1 / 12

    def ratio(values: np.ndarray) -> np.ndarray:
        one_sided = kernel_of(values[:, None], 50.0) @ h
        return one_sided @ np.linalg.inv(one_sided + 1e-5 * 12 * np.eye(12))

    expected = [np.trace(ratio(each) @ ratio(answer)) for each in states]
    np.testing.assert_allclose(normalised_cross_covariance(states, answer), expected, rtol=1e-6)


def test_over_responses_each_place_has_the_responses_that_are_so_long() -> None:
    generator = np.random.default_rng(4)
    lengths = [3, 5, 5, 4, 5, 5, 5, 5, 5, 2]
    hidden = [generator.normal(size=(length, 6)) for length in lengths]
    gold = generator.normal(size=(10, 6))
    values = over_responses(hidden, gold)
    assert len(values) == 5 and np.isfinite(values[:4]).all() and math.isnan(values[4])  # 7 are as long as 5
    having = [number for number, length in enumerate(lengths) if length > 3]
    at_3 = np.stack([hidden[number][3] for number in having])
    assert values[3] == pytest.approx(normalised_hsic(gaussian_kernel(at_3), gaussian_kernel(gold[having])))


def test_peaks_are_above_the_upper_fence() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, math.nan, 8.0, 8.1])
    low, high = np.quantile([1.0, 2.0, 3.0, 4.0, 5.0, 8.0, 8.1], [0.25, 0.75])
    assert high + 1.5 * (high - low) > 8.1 and not peaks(values).any()
    assert peaks(np.append(values, 99.0)).tolist() == [False] * 8 + [True]
    assert not peaks(np.array([math.nan, math.nan])).any()


def exhaustive(chain: Sequence[int], score) -> list[int]:
    """Every order's first step tried by itself: the one that leaves the highest score goes, the first of equal ones."""
    rank, remaining = {}, list(range(len(chain)))
    for round_ in range(len(chain)):
        best = None
        for left_out in remaining:
            (value,) = score([[chain[place] for place in remaining if place != left_out]])
            if best is None or value > best[0]:
                best = (value, left_out)
        rank[best[1]] = round_
        remaining.remove(best[1])
    return [rank[place] for place in range(len(chain))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=6), st.integers(0, 9))
def test_greedy_pruning_takes_in_each_round_the_best_of_all_removals(chain: list[int], seed: int) -> None:
    def score(chains):
        return [np.random.default_rng([seed, *each]).integers(0, 5) for each in chains]

    assert greedy_pruning(chain, score) == exhaustive(chain, score)


def test_where_tokens_count_by_themselves_the_order_is_that_of_their_worth() -> None:
    worth = [0.3, 2.0, -1.0, 0.7, 0.1]
    read = []

    def score(chains):
        read.extend(len(each) + 4 for each in chains)
        return [sum(worth[token] for token in each) for each in chains]

    assert greedy_pruning(range(5), score) == np.argsort(np.argsort(worth)).tolist()
    assert sum(read) == tokens_to_read(5, 4)
    read.clear()
    assert greedy_pruning(range(5), score, a_round=2) == np.argsort(np.argsort(worth)).tolist()
    assert sum(read) == tokens_to_read(5, 4, a_round=2)


def test_cross_rollout_deviation_by_hand() -> None:
    found = cross_rollout_deviation([[-1.0, -2.0], [-3.0, -2.0], [-2.0, -2.0]])
    np.testing.assert_allclose(found, [math.sqrt(2 / 3), 0.0])
    assert np.isnan(cross_rollout_deviation([[-1.0, -2.0]])).all()


def test_divergence_by_hand() -> None:
    """Counts (3, 1, 0) and (1, 1, 2) with a half added to each of three answers."""
    p, q = np.array([3.5, 1.5, 0.5]) / 5.5, np.array([1.5, 1.5, 2.5]) / 5.5
    expected = float((p * np.log(p / q)).sum())
    assert divergence(["a", "a", "a", "b"], ["a", "b", "c", "c"]) == pytest.approx(expected)
    assert divergence([1.0, 0.0], [0.0, 1.0]) == 0.0
    assert resampling_importance([["a", "b"], ["a", "b"], ["b", "b"]]) == [
        0.0,
        pytest.approx(divergence(["a", "b"], ["b", "b"])),
    ]


@pytest.mark.parametrize(
    ("texts", "starts"),
    [
        (["We", " add", " 3", ".", "14", ".", " Then", " stop", "!"], [0, 6]),
        (["need +1", " take", " .", " need", " done"], [0, 3]),
        (["a\n", "b", "\n\n", "c"], [0, 1, 3]),
        (["one. two.", " three"], [0, 1]),
        (["end", "."], [0]),
        ([], [0]),
    ],
)
def test_sentences_begin_after_a_stop_and_white_space(texts: list[str], starts: list[int]) -> None:
    assert sentence_starts(texts, len(texts)) == starts


@given(numbers, st.data())
def test_spearman_is_the_correlation_of_mean_ranks(first: list[float], data: st.DataObject) -> None:
    second = data.draw(st.lists(st.integers(-4, 4).map(float), min_size=len(first), max_size=len(first)))

    def mean_ranks(values: list[float]) -> list[float]:
        return [sum(b < a for b in values) + (sum(b == a for b in values) + 1) / 2 for a in values]

    x, y = mean_ranks(first), mean_ranks(second)
    found = spearman(np.array(first), np.array(second))
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)


@given(numbers, st.sampled_from([0.1, 0.2, 0.5, 1.0]))
def test_the_top_share_and_its_overlap(values: list[float], share: float) -> None:
    marked = top_share(np.array(values), share)
    count = math.ceil(share * len(values))
    best = sorted(range(len(values)), key=lambda place: (-values[place], place))[:count]
    assert set(np.flatnonzero(marked)) == set(best)
    other = top_share(-np.array(values), share)
    both, either = set(best) & set(np.flatnonzero(other)), set(best) | set(np.flatnonzero(other))
    assert jaccard(marked, other) == pytest.approx(len(both) / len(either))


def test_agreement_counts_tokens_that_both_lenses_have() -> None:
    first = [np.array([1.0, 2.0, 3.0, 4.0, 5.0, math.nan]), np.array([1.0, 2.0]), np.arange(10.0)]
    second = [np.array([1.0, 2.0, 3.0, 5.0, 4.0, 9.0]), np.array([1.0, 2.0]), np.arange(10.0)]
    found = agreement(first, second, share=0.2, seed=0)
    assert found is not None and (found.responses, found.tokens) == (2, 15)
    assert found.jaccard == 0.5 and found.spearman == pytest.approx((0.9 + 1.0) / 2)
    assert found.by_chance == pytest.approx(0.2 / 1.8)
    assert agreement(first[1:2], second[1:2], share=0.2, seed=0) is None


def test_a_budget_is_never_exceeded() -> None:
    budget = TokenBudget(10)
    assert [budget.take(tokens) for tokens in (4, 7, 6, 1)] == [True, False, True, False] and budget.spent == 10
    assert TokenBudget().take(10**12)


@pytest.mark.parametrize("percent", range(1, 101))
def test_the_top_share_is_exact_for_the_share_as_written(percent: int) -> None:
    """In floats 0.07 of 100 is slightly more than 7."""
    for count in (1, 3, 10, 50, 100, 700):
        marked = int(top_share(np.arange(float(count)), percent / 100).sum())
        assert marked == -(-percent * count // 100)
