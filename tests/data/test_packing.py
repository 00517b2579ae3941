"""Dealing and packing lose nothing: each response token is a target exactly once, in one uncut sequence, at its place."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import batch_of

from megatron_fork.data import MicroBatch, RowShape, deal, micro_batches_needed, pack
from megatron_fork.errors import DataError


def sequences_of(micro_batch: MicroBatch) -> list[tuple[list[int], list[int], list[bool], list[int]]]:
    """(tokens, targets, response flags, positions) between the cumulative lengths."""
    edges = micro_batch.cumulative_lengths.tolist()
    columns = [
        getattr(micro_batch, name)[0].tolist() for name in ("token_1t", "target_1t", "response_1t", "position_1t")
    ]
    return [tuple(column[a:b] for column in columns) for a, b in itertools.pairwise(edges)]


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 25)), max_size=24),
    budget=st.integers(1, 80),
    alignment=st.sampled_from([1, 2, 4, 7]),
    context=st.integers(1, 3),
    surplus=st.integers(0, 2),
    quadratic_at=st.sampled_from([math.inf, 10.0, 0.5]),
    ranks=st.integers(1, 4),
)
@settings(max_examples=150, deadline=None)
def test_each_response_token_is_a_target_once(
    lengths: list[tuple[int, int]],
    budget: int,
    alignment: int,
    context: int,
    surplus: int,
    quadratic_at: float,
    ranks: int,
) -> None:
    shape = RowShape(alignment, context)
    batch = batch_of(lengths)
    wanted = sorted((*sequence.prompt.tokens, *sequence.response) for sequence in batch.sequences)
    found, trained = [], []
    for rank in range(ranks):
        share = deal(batch, rank, ranks, quadratic_at=quadratic_at)
        count = micro_batches_needed(share, token_budget=budget) + surplus
        micro_batches = pack(share, token_budget=budget, count=count, shape=shape, quadratic_at=quadratic_at)
        assert len(micro_batches) == count >= 1
        places: list[int] = []
        for micro_batch in micro_batches:
            assert micro_batch.tokens > 0
            assert micro_batch.tokens % (context * alignment) == 0
            assert micro_batch.cumulative_lengths[-1] == micro_batch.tokens
            assert micro_batch.longest == micro_batch.cumulative_lengths.diff().max()
            true_lengths = []
            for tokens, targets, response, positions in sequences_of(micro_batch):
                assert positions == list(range(len(tokens)))
                assert context == 1 or len(tokens) % (2 * context) == 0
                if not any(response):  # the rest of the row
                    assert len(tokens) <= math.lcm(2 * context if context > 1 else 1, context * alignment)
                    assert not any(tokens)
                    continue
                end = len(response) - response[::-1].index(True)
                assert len(tokens) - end < (2 * context if context > 1 else 1)
                assert not any(tokens[end:])
                true_lengths.append(end)
                whole = [*tokens[:end], targets[end - 1]]
                assert targets[:end] == whole[1:]
                found.append(tuple(whole))
                trained += [target for target, flag in zip(targets, response, strict=True) if flag]
            assert sum(true_lengths) <= budget or len(true_lengths) == 1
            # What stands at its place in the batch's columns is the value of that very token.
            targets_r = micro_batch.target_1t[micro_batch.response_1t]
            assert torch.equal(share.entropy_t[micro_batch.place_r], targets_r.float())
            places += micro_batch.place_r.tolist()
        assert sorted(places) == list(range(share.response_tokens))
    assert sorted(found) == wanted
    assert sorted(trained) == sorted(token for sequence in batch.sequences for token in sequence.response)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 12)), min_size=1, max_size=12), seed=st.integers(0, 99)
)
@settings(max_examples=50, deadline=None)
def test_rows_are_those_of_the_marked_tokens(lengths: list[tuple[int, int]], seed: int) -> None:
    batch = batch_of(lengths)
    selected = torch.rand(batch.response_tokens, generator=torch.Generator().manual_seed(seed)) < 0.3
    marked = []
    for micro_batch in pack(batch, token_budget=20, shape=RowShape(4)):
        rows = micro_batch.rows(selected)
        assert not (rows & ~micro_batch.response_1t).any()
        marked += micro_batch.target_1t[rows].tolist()
    assert sorted(marked) == sorted(batch.entropy_t[selected].long().tolist())


def work_of(lengths: list[int], quadratic_at: float) -> float:
    return sum(length + length * length / quadratic_at for length in lengths)


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40),
    bins=st.integers(1, 6),
    quadratic_at=st.sampled_from([math.inf, 1000.0, 30.0]),
)
@settings(max_examples=80, deadline=None)
def test_ranks_and_micro_batches_have_even_work(lengths: list[int], bins: int, quadratic_at: float) -> None:
    batch = batch_of([(1, length) for length in lengths])
    shares = [deal(batch, rank, bins, quadratic_at=quadratic_at) for rank in range(bins)]
    of_ranks = [work_of([len(sequence.response) for sequence in share.sequences], quadratic_at) for share in shares]
    micro_batches = pack(batch, token_budget=12_000, count=bins, quadratic_at=quadratic_at)
    of_micro_batches = [
        work_of(
            [sum(response) for _, _, response, _ in sequences_of(micro_batch) if any(response)],
            quadratic_at,
        )
        for micro_batch in micro_batches
    ]
    total, largest = work_of(lengths, quadratic_at), max(work_of([length], quadratic_at) for length in lengths)
    for works in (of_ranks, of_micro_batches):
        assert sum(works) == pytest.approx(total)
        # The bin with the most work had the least before its last sequence, and that is no longer than its others.
        assert max(works) <= total / bins + largest * (1 - 1 / bins) + 1e-6
        if max(works) > largest:
            assert max(works) - min(works) <= max(works) / 2 + 1e-6


def test_attention_weighs_in_the_balance() -> None:
    """By tokens 8 and four 2s balance; where attention is everything the 8 outweighs them all."""
    batch = batch_of([(1, length) for length in (8, 2, 2, 2, 2, 8, 4, 4)])
    shares = [deal(batch, rank, 3, quadratic_at=1e-9).response_lengths for rank in range(3)]
    assert shares == [[8], [8], [4, 4, 2, 2, 2, 2]]
    assert sorted(sum(deal(batch, rank, 3).response_lengths) for rank in range(3)) == [10, 10, 12]


@given(
    lengths=st.lists(st.integers(1, 50), max_size=30),
    budget=st.integers(1, 120),
    quadratic_at=st.sampled_from([math.inf, 5.0]),
)
@settings(max_examples=50, deadline=None)
def test_packing_twice_is_packing_once(lengths: list[int], budget: int, quadratic_at: float) -> None:
    first, second = (
        pack(batch_of([(1, length) for length in lengths]), token_budget=budget, quadratic_at=quadratic_at)
        for _ in range(2)
    )
    assert [part.token_1t.tolist() for part in first] == [part.token_1t.tolist() for part in second]


@given(lengths=st.lists(st.integers(1, 50), max_size=30), budget=st.integers(1, 120), surplus=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_any_count_from_the_needed_on_is_met(lengths: list[int], budget: int, surplus: int) -> None:
    batch = batch_of([(1, length) for length in lengths])
    needed = micro_batches_needed(batch, token_budget=budget)
    assert len(pack(batch, token_budget=budget)) == needed
    assert needed >= max(1, sum(min(length, budget) for length in lengths) / budget)
    assert len(pack(batch, token_budget=budget, count=needed + surplus, quadratic_at=7.0)) == needed + surplus
    with pytest.raises(DataError, match=rf"count={needed - 1} micro-batches of token_budget={budget} do not hold"):
        pack(batch, token_budget=budget, count=needed - 1)


def test_a_very_long_sequence_stands_alone_beside_short_ones() -> None:
    batch = batch_of([(3, 10), (2, 29_696), (3, 12)])
    micro_batches = pack(batch, token_budget=16_384)
    assert [micro_batch.cumulative_lengths.diff().tolist() for micro_batch in micro_batches] == [[29_697], [14, 12]]
    together = pack(batch, token_budget=40_000, shape=RowShape(8))
    assert [micro_batch.cumulative_lengths.diff().tolist() for micro_batch in together] == [[29_697, 14, 12, 5]]
    assert together[0].longest == 29_697
    assert int(together[0].response_1t.sum()) == 29_718


@pytest.mark.parametrize("alignment", [1, 4])
def test_no_sequences_still_give_a_micro_batch(alignment: int) -> None:
    (only,) = pack(batch_of([]), token_budget=100, shape=RowShape(alignment))
    assert only.tokens == alignment
    assert not only.response_1t.any()
    assert only.place_r.shape == (0,)
    assert not only.rows(torch.zeros(0, dtype=torch.bool)).any()
