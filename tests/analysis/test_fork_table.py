"""The fork table ranks distinct tokens by mean entropy, frequent ones only where there are enough of them."""

import pytest

from megatron_fork.analysis.colours import LEVELS, entropy_colours, entropy_scale
from megatron_fork.analysis.tokens import fork_table
from megatron_fork.analysis.traces import Trace


def trace_of(tokens: list[tuple[str, float, bool]]) -> Trace:
    texts, entropy, selected = (list(column) for column in zip(*tokens, strict=True))
    return Trace(1, "", "", texts, entropy, selected, [0.0] * len(texts), 1.0, None, "stop")


def test_counts_means_and_shares() -> None:
    table = fork_table([trace_of([("a", 1.0, True), ("a", 2.0, False), ("b", 0.5, False)])] * 2)
    (forking,), (following,) = table.forking, table.following
    assert (forking.text, forking.count, forking.mean_entropy, forking.share_selected) == ("a", 4, 1.5, 0.5)
    assert (following.text, following.count, following.mean_entropy, following.share_selected) == ("b", 2, 0.5, 0.0)


def test_both_ends_in_order_and_no_token_on_both() -> None:
    table = fork_table([trace_of([(f"token {rank}", float(rank), False) for rank in range(11)])])
    assert [token.mean_entropy for token in table.forking] == [10, 9, 8, 7, 6]
    assert [token.mean_entropy for token in table.following] == [0, 1, 2, 3, 4]


def test_rare_tokens_are_not_ranked_where_there_are_frequent_ones() -> None:
    frequent = [(f"frequent {rank}", 0.1 * rank, False) for rank in range(32)] * 20
    table = fork_table([trace_of([*frequent, ("rare", 9.0, True)])])
    assert (table.minimum_count, table.ranked, table.distinct) == (20, 32, 33)
    assert "rare" not in {token.text for token in table.forking}


def test_no_tokens_give_an_empty_table() -> None:
    table = fork_table([])
    assert (table.forking, table.following, table.distinct) == ([], [], 0)


@pytest.mark.parametrize(("entropies", "top"), [([], 0.5), ([0.0, 0.0], 0.5), ([2.2] * 50, 2.5), ([float("nan")], 0.5)])
def test_scale_has_a_round_top(entropies: list[float], top: float) -> None:
    assert entropy_scale(entropies).top == top


def test_levels_rise_with_entropy_and_are_bounded() -> None:
    scale = entropy_scale([2.0] * 10)
    levels = [scale.level(value) for value in (-1.0, 0.0, 1.0, 1.99, 2.0, 50.0)]
    assert levels == [0, 0, LEVELS // 2, LEVELS - 1, LEVELS - 1, LEVELS - 1]
    assert scale.level(float("nan")) is None
    assert len(set(entropy_colours(dark=False))) == len(set(entropy_colours(dark=True))) == LEVELS
