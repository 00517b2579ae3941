"""`kth_largest` equals sorting on any float32 there is, and where a sample misleads it."""

import functools
import math
import struct
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.distributed import collectives
from megatron_fork.errors import SelectionError
from megatron_fork.selection import SelectionConfig, kth_largest, select_tokens

MANY = 3 * 2**19 + 5
"""More values than are searched without a first guess from a sample."""


def float_of_bits(bits: int) -> float:
    return struct.unpack("f", struct.pack("I", bits))[0]


bit_patterns = st.integers(0, 2**32 - 1).map(float_of_bits).filter(lambda value: not math.isnan(value))


@given(values=st.lists(bit_patterns, min_size=1, max_size=60))
@settings(max_examples=200, deadline=None)
def test_equals_sorting_of_any_bits(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    assert [kth_largest(tensor, k) for k in range(1, len(values) + 1)] == sorted(tensor.tolist(), reverse=True)


def many() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    uniform = torch.rand(MANY, generator=generator)
    exponential = torch.empty(MANY).exponential_(1.0, generator=generator)
    place = torch.arange(MANY)
    bits = torch.randint(-(2**31), 2**31, (MANY,), generator=generator).to(torch.int32).view(torch.float32)
    return {
        "entropies": exponential,
        "negated": -exponential,
        "about zero": torch.randn(MANY, generator=generator),
        "half are zero": exponential.where(uniform < 0.5, 0.0),
        "both zeros": torch.where(uniform < 0.5, 0.0, -0.0),
        "one value": torch.full((MANY,), -2.5),
        "two values": torch.where(uniform < 0.2, 1.0 + 2.0**-23, 1.0),
        "rising": place / MANY,
        "falling": -place / MANY,
        "denormals": (place % 997 * 2.0**-149).float(),
        "infinities": exponential.where(uniform < 0.7, math.inf).where(uniform > 0.1, -math.inf),
        "any bits": bits.where(~bits.isnan(), 0.0),
        # Every sampled value is a stranger to the rest.
        "in step with the sample": exponential.where(place % 127 != 0, exponential + 50.0),
        "against the sample": exponential.where(place % 127 != 0, -1.0),
        "narrow": 1.0 + (place % 5000) * 2.0**-23,
    }


@pytest.mark.parametrize("name", sorted(many()))
def test_equals_sorting_of_many(name: str) -> None:
    values = many()[name]
    falling = values.sort(descending=True).values
    for k in (1, 2, MANY // 100, MANY // 5, MANY // 2, MANY * 4 // 5, MANY - 1, MANY):
        assert kth_largest(values, k) == falling[k - 1].item()


def test_the_rest_of_what_is_many() -> None:
    values = many()["entropies"]
    half = values.to(torch.bfloat16)
    assert kth_largest(half.view(-1, 1), 1000) == half.float().sort(descending=True).values[999].item()
    strided = values[::2]
    assert kth_largest(strided, 1000) == strided.sort(descending=True).values[999].item()
    with pytest.raises(SelectionError, match=f"value {MANY - 2} of rank 0 is NaN"):
        kth_largest(values.index_fill(0, torch.tensor([MANY - 2]), math.nan), 1)


def test_what_goes_over_the_wire_does_not_grow_with_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def counted(original: Callable, tensor: torch.Tensor, group: None) -> torch.Tensor:
        sent.append(tensor.nbytes)
        return original(tensor, group)

    for name in ("all_reduce_sum", "all_reduce_max"):
        monkeypatch.setattr(collectives, name, functools.partial(counted, getattr(collectives, name)))
    values = torch.rand(2 * MANY, generator=torch.Generator().manual_seed(0))
    for count in (1, 1000, MANY, 2 * MANY):
        sent.clear()
        kth_largest(values[:count], 1 + count // 5)
        assert len(sent) <= 12
        assert sum(sent) < 9 * 33_000  # histograms of 4,099 counts


@pytest.mark.parametrize("rule", ["threshold", "exact_k", "quantile"])
@pytest.mark.parametrize("tokens", ["top", "bottom", "random"])
def test_selection_among_many(tokens: str, rule: str) -> None:
    entropy = many()["half are zero"]
    mask = torch.rand(MANY, generator=torch.Generator().manual_seed(1)) < 0.7
    entropy = entropy.where(mask, math.nan)
    found = select_tokens(entropy, mask, SelectionConfig(tokens=tokens, rule=rule, ratio=0.8))
    count = int(mask.sum())
    k = math.ceil(count * 4 / 5)
    assert not found.mask[~mask].any()
    assert (found.selected, found.candidates) == (int(found.mask.sum()), count)
    if tokens == "random" or rule == "exact_k":
        assert found.selected == k
    if tokens != "random":
        candidates = entropy[mask].sort(descending=tokens == "top").values
        worst_chosen = entropy[found.mask].sort(descending=tokens == "top").values[-1]
        # The quantile at 0.2 of n - 1 steps lies between two neighbours, of which the cut keeps the better.
        assert worst_chosen == candidates[k - 1]
        assert sorted([found.threshold, candidates[k - 1], candidates[k]])[1] == found.threshold
        assert rule == "quantile" or found.threshold == candidates[k - 1]
