"""`kth_largest` is the k-th entry of the sorted values, bit for bit, for every k and every spread over ranks."""

import math
import struct

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ranks import run_on_ranks

from megatron_fork.errors import SelectionError
from megatron_fork.selection import kth_largest

SPECIAL = [0.0, -0.0, math.inf, -math.inf, 1e-45, -1e-45, 1.1754942e-38, 3.4028235e38, -3.4028235e38, 1.0, 1.0000001]
float32s = st.floats(width=32, allow_nan=False) | st.sampled_from(
    [struct.unpack("f", struct.pack("f", x))[0] for x in SPECIAL]
)


@given(values=st.lists(float32s, min_size=1, max_size=40))
@settings(max_examples=150, deadline=None)
def test_equals_sorting(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    assert [kth_largest(tensor, k) for k in range(1, len(values) + 1)] == sorted(values, reverse=True)


@given(values=st.lists(st.integers(-2, 2).map(float), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_equals_sorting_among_ties(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    assert [kth_largest(tensor, k) for k in range(1, len(values) + 1)] == sorted(values, reverse=True)


def test_equals_sorting_of_many_values() -> None:
    values = torch.randn(100_001, generator=torch.Generator().manual_seed(0)).exp()
    ordered = values.sort(descending=True).values
    for k in (1, 2, 20_001, 50_000, 100_000, 100_001):
        assert kth_largest(values, k) == ordered[k - 1].item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_compares_as_float32(dtype: torch.dtype) -> None:
    values = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = values.clone()
    ordered = values.float().flatten().sort(descending=True).values.tolist()
    assert [kth_largest(values.requires_grad_(), k) for k in range(1, 36)] == ordered
    assert torch.equal(values, before)


def test_non_contiguous_values() -> None:
    values = torch.arange(12.0).view(3, 4).T[:, ::2]
    assert [kth_largest(values, k) for k in range(1, 9)] == [11.0, 10.0, 9.0, 8.0, 3.0, 2.0, 1.0, 0.0]


@pytest.mark.parametrize(("values", "k"), [([], 1), ([1.0], 0), ([1.0], 2), ([1.0, 2.0], -1)])
def test_k_outside_the_count_is_refused(values: list[float], k: int) -> None:
    with pytest.raises(SelectionError, match=rf"k={k} is not between 1 and the {len(values)} values"):
        kth_largest(torch.tensor(values), k)


def test_nan_is_refused_at_its_place() -> None:
    with pytest.raises(SelectionError, match=r"value 2 of rank 0 is NaN"):
        kth_largest(torch.tensor([1.0, math.inf, math.nan, math.nan]), 1)


SHARES = [
    [[0.5, -1.0, 3.0, 3.0, math.inf], [], [3.0, -0.0, 0.0, 1e-45, 2.0, 3.0000002]],
    [[], [1.0, 1.0, 1.0, -math.inf], []],
]


def every_k_of_all() -> list[tuple[list[float], str, str]]:
    return [every_k(shares) for shares in SHARES]


def every_k(shares: list[list[float]]) -> tuple[list[float], str, str]:
    group = dist.group.WORLD
    mine = torch.tensor(shares[dist.get_rank()])
    found = [kth_largest(mine, k, group=group) for k in range(1, sum(map(len, shares)) + 1)]
    errors = []
    for values, k in ((mine, len(found) + 1), (torch.tensor([0.0, math.nan] if dist.get_rank() == 1 else []), 1)):
        try:
            kth_largest(values, k, group=group)
        except SelectionError as error:
            errors.append(str(error))
    return found, *errors


@pytest.mark.slow
def test_ragged_and_empty_ranks() -> None:
    for answers in run_on_ranks(every_k_of_all, 3):
        for shares, (found, beyond, nan) in zip(SHARES, answers, strict=True):
            ordered = torch.tensor([value for share in shares for value in share]).sort(descending=True).values.tolist()
            assert found == ordered
            assert beyond == f"k={len(ordered) + 1} is not between 1 and the {len(ordered)} values of all ranks"
            assert nan == "value 1 of rank 1 is NaN"
