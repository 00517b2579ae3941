"""A checksum is the sum of its parts', however a tensor is cut, and no bit that differs escapes it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.serving import checksum

MASK = (1 << 64) - 1
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
INTEGERS = {2: torch.int16, 4: torch.int32}


def made(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(DTYPES), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.integers(1, 5))
def test_parts_add_up(dtype: torch.dtype, down: int, across: int, a_part: int) -> None:
    whole = made(down * a_part, 256, dtype)
    rows, columns = a_part, 256 // across
    parts = (
        checksum(whole[row : row + rows, column : column + columns], row=row, column=column, columns=256)
        for row in range(0, len(whole), rows)
        for column in range(0, 256, columns)
    )
    assert sum(parts) & MASK == checksum(whole)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(DTYPES), st.sampled_from([(1, 1), (3, 5), (7, 64), (9, 96)]), st.data())
def test_any_flipped_bit_shows(dtype: torch.dtype, shape: tuple[int, int], data) -> None:
    whole = made(*shape, dtype)
    other = whole.clone()
    words = other.view(-1).view(INTEGERS[dtype.itemsize])
    place, bit = data.draw(st.integers(0, len(words) - 1)), data.draw(st.integers(0, 8 * dtype.itemsize - 2))
    words[place] ^= 1 << bit
    assert checksum(other) != checksum(whole)


def test_what_is_in_another_place_shows() -> None:
    whole = made(64, 64, torch.bfloat16)
    for other in (whole.flip(0), whole.flip(1), whole.t(), whole.roll(1, 0), whole[torch.randperm(64)], whole + 1):
        assert checksum(other) != checksum(whole)


def test_both_zeros_are_the_same_and_any_shape_has_one() -> None:
    assert checksum(torch.tensor([0.0, 1.0])) == checksum(torch.tensor([-0.0, 1.0]))
    for shape in ((), (5,), (2, 3, 4), (0, 4)):
        assert 0 <= checksum(torch.zeros(shape)) <= MASK


def test_a_cut_within_words_is_refused() -> None:
    whole = made(4, 256, torch.bfloat16)
    with pytest.raises(ValueError, match="cut at columns 2 to 258 of 256"):
        checksum(whole, column=2, columns=256)
