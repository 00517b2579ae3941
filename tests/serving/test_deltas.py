"""Whatever changes between two versions of weights, what is sent of it makes the one the other, bit for bit."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.serving import WeightCopy
from megatron_fork.serving.deltas import WHOLE, apply, compressed, decompressed, difference, size_of
from megatron_fork.serving.messages import messages_in, write_message

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.uint8, torch.int64]
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def random_bits(shape: list[int], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Any bits, so NaN and both zeros as well."""
    size = torch.empty(shape, dtype=dtype, device="meta").nbytes
    return torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8).view(dtype).view(shape)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(INTEGERS[tensor.itemsize])


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 70), min_size=1, max_size=3),
    st.sampled_from([0.0, 1e-3, 0.02, 0.3, 1.0]),
    st.integers(0, 1 << 30),
)
def test_a_difference_applies(dtype: torch.dtype, shape: list[int], fraction: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    old, other = (random_bits(shape, dtype, generator) for _ in range(2))
    new = torch.where(torch.rand(shape, generator=generator) < fraction, other, old)
    change, data = difference(old, new)
    assert len(data) == size_of(change, new.nbytes, new.itemsize) <= new.nbytes
    found = old.clone()
    apply(change, data, found)
    assert torch.equal(bits(found), bits(new))


@pytest.mark.parametrize("places", [[0], [199_999], [0, 65_535, 65_536], [255], [256], [32_767], [32_768, 32_769], []])
def test_gaps_of_any_width(places: list[int]) -> None:
    old = torch.zeros(200_000, dtype=torch.bfloat16)
    new = old.clone()
    new[places] = 1.0
    change, data = difference(old, new)
    assert len(data) <= 32 * max(1, len(places))
    apply(change, data, old)
    assert torch.equal(old, new)


def test_another_type_or_shape_comes_whole() -> None:
    new = torch.ones(4, 4)
    for old in (None, torch.ones(16), torch.ones(4, 4, dtype=torch.bfloat16)):
        assert difference(old, new)[0][0] == WHOLE


def test_what_does_not_fit_is_refused() -> None:
    change, data = difference(torch.zeros(1000), torch.arange(1000) % 100 == 1)
    assert change[0] == WHOLE
    sparse = torch.zeros(1000)
    sparse[900] = 1.0
    change, data = difference(torch.zeros(1000), sparse)
    with pytest.raises(ValueError, match="of 500 words"):
        apply(change, data, torch.zeros(500))
    with pytest.raises(ValueError, match="bytes for"):
        apply(change, data[:-1], torch.zeros(1000))


@given(st.binary(max_size=3000))
def test_compressed_bytes_come_back(data: bytes) -> None:
    plain = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    small = compressed(plain)
    if small is None:
        return
    assert len(small) < len(plain)
    assert torch.equal(decompressed(small, len(plain)), plain)
    for spoilt, size in ((small[:-3], len(plain)), (small, len(plain) - 1), (small[2:], len(plain))):
        with pytest.raises(ValueError, match=r"decompressed|come out"):
            decompressed(spoilt, size)


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"layer.{place}": random_bits([17, 9], torch.bfloat16, generator) for place in range(6)}


@pytest.mark.parametrize("seed", range(4))
def test_copies_on_both_sides_stay_equal_over_many_updates(seed: int, tmp_path) -> None:
    """Random words change, a tensor changes its type, one goes and one comes; through memory and through a folder."""
    numbers, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    ours, theirs, present = WeightCopy(), WeightCopy(), weights(seed)
    for update in range(12):
        as_changes = update > 0 and numbers.random() < 0.8
        label = f"v{update}"
        for copy in (ours, theirs):
            copy.begin()
        named = list(present.items())
        folder = tmp_path / label
        folder.mkdir()
        for number, bucket in enumerate((named[:3], named[3:]), 1):
            message, data = ours.send(bucket, label, as_changes=as_changes, compress=numbers.random() < 0.5)
            if not as_changes:
                data = torch.cat([bits(tensor).view(torch.uint8) for _, tensor in bucket])
            write_message(folder, number, message, data)
        taken = dict(named for message, data in messages_in(folder) for named in theirs.receive(message, data))
        assert taken.keys() == present.keys()
        for name, tensor in present.items():
            assert taken[name].dtype == tensor.dtype and torch.equal(bits(taken[name]), bits(tensor)), name
        for copy in (ours, theirs):
            copy.finish()
            assert copy.version == label
        name = numbers.choice(list(present))
        if numbers.random() < 0.3:
            present[name] = present[name].to(numbers.choice(DTYPES[:3]))
        elif numbers.random() < 0.3:
            present[f"new.{update}"] = present.pop(name)
        for tensor in present.values():
            chosen = torch.rand(tensor.shape, generator=generator) < numbers.choice([0.0, 0.02, 0.5])
            bits(tensor)[chosen.view(-1)] ^= 1


def test_changes_since_other_weights_are_refused() -> None:
    ours, theirs = WeightCopy(), WeightCopy()
    bucket = list(weights(1).items())
    for label, as_changes in (("a", False), ("b", True)):
        ours.begin()
        message, data = ours.send(bucket, label, as_changes=as_changes, compress=False)
        ours.finish()
    theirs.begin()
    with pytest.raises(ValueError, match="the changes are since the weights a, and here are none"):
        theirs.receive(message, data)
    theirs.begin()  # and an update that was not finished leaves no version
    assert theirs.base == ""
