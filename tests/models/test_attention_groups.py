"""Packed attention equals attention over each sequence alone, whatever lengths stand next to each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer import TransformerConfig

from megatron_fork.models.attention import PackedAttention, group_by_length

HEADS, KEY_HEADS, WIDTH = 4, 2, 8


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_groups_cover_the_row_with_little_padding(lengths: list[int]) -> None:
    groups = group_by_length(lengths)
    assert [length for group in groups for length in group.lengths] == lengths
    assert [group.start for group in groups] == [
        sum(sum(earlier.lengths) for earlier in groups[:place]) for place in range(len(groups))
    ]
    for group in groups:
        assert max(group.lengths) * len(group.lengths) <= 1.3 * group.tokens


def test_a_long_sequence_does_not_pad_a_short_one() -> None:
    assert [group.lengths for group in group_by_length([29_696, 10, 10])] == [(29_696,), (10, 10)]
    assert [group.lengths for group in group_by_length([100, 99, 90, 80, 70])] == [(100, 99, 90, 80, 70)]


def expected(query, key, value, lengths):
    """Softmax attention of each sequence alone, by hand."""
    rows, start = [], 0
    key, value = (tensor.repeat_interleave(HEADS // KEY_HEADS, dim=1) for tensor in (key, value))
    for length in lengths:
        q, k, v = (tensor[start : start + length].transpose(0, 1) for tensor in (query, key, value))
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = ((q @ k.transpose(1, 2)) * WIDTH**-0.5).masked_fill(future, -torch.inf).softmax(-1)
        rows.append((weights @ v).transpose(0, 1).flatten(1))
        start += length
    return torch.cat(rows)


@pytest.fixture(scope="module")
def attention() -> PackedAttention:
    config = TransformerConfig(num_layers=1, hidden_size=HEADS * WIDTH, num_attention_heads=HEADS)
    return PackedAttention(config, 1, None, "self")


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_equals_each_sequence_alone(attention: PackedAttention, lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    query, key, value = (
        torch.randn(tokens, heads, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    edges = torch.tensor([0, *lengths]).cumsum(0).int()
    packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=edges, cu_seqlens_kv=edges)
    found = attention(query, key, value, packed_seq_params=packed)
    wanted = expected(query, key, value, lengths)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    upstream = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    ours = torch.autograd.grad(found, (query, key, value), upstream)
    theirs = torch.autograd.grad(wanted, (query, key, value), upstream)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-11)


def test_unpacked_rows_are_sequences(attention: PackedAttention) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(7, 3, heads, WIDTH, generator=generator, dtype=torch.float64)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    found = attention(query, key, value)
    for row in range(3):
        torch.testing.assert_close(
            found[:, row], expected(query[:, row], key[:, row], value[:, row], [7]), rtol=1e-11, atol=1e-12
        )
