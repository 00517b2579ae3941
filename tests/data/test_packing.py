"""Dealing and packing lose nothing: each response token is a target exactly once, in one uncut sequence, at its place."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.data import MicroBatch, deal, pack
from megatron_fork.experience import Batch, Demonstration, Prompt


def batch_of(lengths: list[tuple[int, int]]) -> Batch:
    """Sequences of (prompt, response) tokens that are all different; the entropy of a response token is its token."""
    sequences, following = [], 1
    for number, (prompt, response) in enumerate(lengths):
        tokens = tuple(range(following, following + prompt + response))
        following += prompt + response
        sequences.append(Demonstration(number, Prompt(number, "", tokens[:prompt], ""), tokens[prompt:]))
    entropies = [float(token) for sequence in sequences for token in sequence.response]
    return Batch(sequences, entropy_t=torch.tensor(entropies))


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
    ranks=st.integers(1, 4),
)
@settings(max_examples=150, deadline=None)
def test_each_response_token_is_a_target_once(
    lengths: list[tuple[int, int]], budget: int, alignment: int, ranks: int
) -> None:
    batch = batch_of(lengths)
    wanted = sorted((*sequence.prompt.tokens, *sequence.response) for sequence in batch.sequences)
    found, trained = [], []
    for rank in range(ranks):
        share = deal(batch, rank, ranks)
        micro_batches = pack(share, token_budget=budget, alignment=alignment)
        assert micro_batches
        places: list[int] = []
        for micro_batch in micro_batches:
            assert micro_batch.tokens > 0
            assert micro_batch.tokens % alignment == 0
            assert micro_batch.cumulative_lengths[-1] == micro_batch.tokens
            assert micro_batch.longest == micro_batch.cumulative_lengths.diff().max()
            true_lengths = []
            for tokens, targets, response, positions in sequences_of(micro_batch):
                assert positions == list(range(len(tokens)))
                if not any(response):  # alignment
                    assert len(tokens) <= alignment
                    continue
                true_lengths.append(len(tokens))
                whole = [*tokens, targets[-1]]
                assert targets == whole[1:]
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
    for micro_batch in pack(batch, token_budget=20, alignment=4):
        rows = micro_batch.rows(selected)
        assert not (rows & ~micro_batch.response_1t).any()
        marked += micro_batch.target_1t[rows].tolist()
    assert sorted(marked) == sorted(batch.entropy_t[selected].long().tolist())


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40), ranks=st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_dealing_balances_tokens(lengths: list[int], ranks: int) -> None:
    batch = batch_of([(1, length) for length in lengths])
    shares = [deal(batch, rank, ranks) for rank in range(ranks)]
    counts = [len(share.sequences) for share in shares]
    assert max(counts) - min(counts) <= 1
    tokens = [share.response_tokens for share in shares]
    # Longest first, back and forth: no rank is ahead by more than the longest sequence.
    assert max(tokens) - min(tokens) <= max(lengths)


def test_a_very_long_sequence_stands_alone_beside_short_ones() -> None:
    batch = batch_of([(3, 10), (2, 29_696), (3, 12)])
    micro_batches = pack(batch, token_budget=16_384)
    assert [micro_batch.cumulative_lengths.diff().tolist() for micro_batch in micro_batches] == [[29_697], [14, 12]]
    together = pack(batch, token_budget=40_000, alignment=8)
    assert [micro_batch.cumulative_lengths.diff().tolist() for micro_batch in together] == [[29_697, 14, 12, 5]]
    assert together[0].longest == 29_697
    assert int(together[0].response_1t.sum()) == 29_718


@pytest.mark.parametrize("alignment", [1, 4])
def test_no_sequences_still_give_a_micro_batch(alignment: int) -> None:
    (only,) = pack(batch_of([]), token_budget=100, alignment=alignment)
    assert only.tokens == alignment
    assert not only.response_1t.any()
    assert only.place_r.shape == (0,)
    assert not only.rows(torch.zeros(0, dtype=torch.bool)).any()
