"""A piece of kept memory is given out again when nothing lies in it any more, and never before."""

import random

import torch

from megatron_fork.serving import KeptMemory


def test_it_is_used_again_once_no_view_is_left() -> None:
    memory = KeptMemory()
    first = memory.take(100)
    place, view = first.data_ptr(), first[10:20].view(5, 2)
    del first
    other = memory.take(50)
    assert other.data_ptr() != place
    del view
    assert memory.take(80).data_ptr() == place


def test_a_short_piece_gives_way_to_a_longer_one() -> None:
    memory = KeptMemory(most=1)
    sizes = [len(memory.take(size)) for size in (10, 20, 20, 5)]
    assert sizes == [10, 20, 20, 5]
    assert [len(piece) for piece in memory._pieces] == [20]


def test_nothing_that_is_in_use_is_ever_overwritten() -> None:
    numbers, memory = random.Random(0), KeptMemory()
    held: list[tuple[int, torch.Tensor]] = []
    for step in range(500):
        taken = memory.take(numbers.randint(1, 40)).fill_(step % 251)
        held.append((step % 251, taken[: numbers.randint(1, len(taken))]))
        del taken
        numbers.shuffle(held)
        del held[numbers.randint(0, 4) :]
        assert all(bool((tensor == value).all()) for value, tensor in held)
        assert len(memory._pieces) <= 2
