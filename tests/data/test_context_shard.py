"""The parts of a packed row on its context ranks are the row: every per-token value once, in work that balances."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import batch_of

from megatron_fork.data import MicroBatch, RowShape, pack
from megatron_fork.errors import DataError


def check_parts(whole: MicroBatch, context: int, alignment: int, entropy_t: torch.Tensor) -> None:
    """Each context rank's part is right by itself, and together they hold all of `whole`."""
    parts = [whole.on_context_rank(rank, context) for rank in range(context)]
    names = ("token_1t", "position_1t", "target_1t", "response_1t")
    restored = {name: torch.empty_like(getattr(whole, name)) for name in names}
    seen_t = torch.zeros(whole.tokens, dtype=torch.long)
    edges = whole.cumulative_lengths.tolist()
    for rank, part in enumerate(parts):
        assert part.tokens == whole.tokens // context
        assert part.tokens % alignment == 0
        assert torch.equal(part.cumulative_lengths, whole.cumulative_lengths)
        assert part.longest == whole.longest
        # By hand: of each sequence the rank's chunk from the front, then its mirror image from the back.
        places = []
        for start, end in itertools.pairwise(edges):
            chunks = torch.arange(start, end).chunk(2 * context) if context > 1 else [torch.arange(start, end)]
            places += [chunks[rank], chunks[2 * context - 1 - rank]] if context > 1 else chunks
        place_t = torch.cat(places)
        seen_t[place_t] += 1
        for name in names:
            restored[name][:, place_t] = getattr(part, name)
        assert torch.equal(entropy_t[part.place_r], part.target_1t[part.response_1t].float())
    assert (seen_t == 1).all()
    for name in names:
        assert torch.equal(restored[name], getattr(whole, name))
    places_r = torch.cat([part.place_r for part in parts])
    assert torch.equal(places_r.sort().values, whole.place_r.sort().values)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 25)), max_size=12),
    context=st.integers(1, 4),
    alignment=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_parts_together_are_the_row(lengths: list[tuple[int, int]], context: int, alignment: int, seed: int) -> None:
    batch = batch_of(lengths)
    selected_t = torch.rand(batch.response_tokens, generator=torch.Generator().manual_seed(seed)) < 0.3
    marked = []
    for micro_batch in pack(batch, token_budget=60, shape=RowShape(alignment, context)):
        check_parts(micro_batch, context, alignment, batch.entropy_t)
        for rank in range(context):
            part = micro_batch.on_context_rank(rank, context)
            marked += part.target_1t[part.rows(selected_t)].tolist()
    assert sorted(marked) == sorted(batch.entropy_t[selected_t].long().tolist())


def test_the_longest_response_beside_one_of_ten_tokens() -> None:
    batch = batch_of([(3, 10), (5, 29_696)])
    (whole,) = pack(batch, token_budget=32_768, shape=RowShape(2, 4))
    assert whole.cumulative_lengths.diff().tolist() == [29_704, 16]
    check_parts(whole, 4, 2, batch.entropy_t)


def test_a_row_packed_for_no_context_cannot_be_shared() -> None:
    (whole,) = pack(batch_of([(3, 5)]), token_budget=100)
    with pytest.raises(
        DataError, match="a packed sequence of 7 tokens cannot be cut into 4 equal chunks for context=2"
    ):
        whole.on_context_rank(0, 2)
