"""Statistics and LM head equal a float64 softmax for any shape, dtype, padding and temperature, on 1, 2 and 4 ranks.

Each seeded bug below must be caught by these same checks: a mutation that they let pass fails the test.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from support import softmax_checks as checks
from support.ranks import run_on_ranks
from torch import Tensor

from megatron_fork.vocab_parallel import head, lm_head, shard, statistics, tile

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), dtype=st.sampled_from(DTYPES))
def test_statistics(seed: int, dtype: torch.dtype) -> None:
    checks.check_statistics(checks.make(seed, 1, dtype), None)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), dtype=st.sampled_from(DTYPES), chunk_tokens=st.sampled_from([None, 1, 3, 50]))
def test_head(seed: int, dtype: torch.dtype, chunk_tokens: int | None) -> None:
    checks.check_head(checks.make(seed, 1, dtype), None, chunk_tokens)


def test_head_of_several_column_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_CPU_COLUMNS", 13)
    monkeypatch.setattr(head, "_CPU_TOKENS", 5)
    for seed in range(20):
        for dtype in DTYPES:
            checks.check_head(checks.make(seed, 1, dtype), None, None)


def everything(group: dist.ProcessGroup | None, seeds: range) -> None:
    ranks = 1 if group is None else dist.get_world_size(group)
    for seed in seeds:
        for dtype in DTYPES:
            checks.check_statistics(checks.make(seed, ranks, dtype), group)
            checks.check_head(checks.make(seed, ranks, dtype), group)


def everything_on_this_world(seeds: range) -> None:
    everything(dist.group.WORLD, seeds)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_on_ranks(ranks: int) -> None:
    run_on_ranks(everything_on_this_world, ranks, range(8))


@contextmanager
def replaced(owner: Any, name: str, by: Any) -> Iterator[None]:
    before = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        setattr(owner, name, before)


def plain_all_reduce(logits: Tensor, targets: Tensor, *, group: Any = None, temperature=1.0, vocab_size=None, **_: Any):
    """What many write first: autograd through a bare all_reduce, which it does not see."""
    own = shard.VocabularyShard.of(logits.shape[-1], vocab_size, group)
    scaled = logits[:, : own.columns].to(tile.accumulation_dtype(logits.dtype)) / temperature
    column, held = own.locate(targets)
    weight = scaled.exp()
    sums = torch.stack(
        [
            weight.sum(1),
            (weight * scaled.nan_to_num(neginf=0.0)).sum(1),
            (scaled.gather(1, column[:, None])[:, 0] if own.columns else scaled.new_zeros(len(targets))) * held,
        ]
    )
    if group is not None:
        dist.all_reduce(sums.detach(), group=group)  # writes into the same storage, unseen
    return shard.TokenStatistics(sums[2] - sums[0].log(), sums[0].log() - sums[1] / sums[0])


def _of(size: int, vocab_size: int | None, group: Any, *, shift: int = 0, padding: bool = False) -> Any:
    ranks = 1 if group is None else group.size()
    place = 0 if group is None else group.rank()
    end = size * ranks if padding or vocab_size is None else vocab_size
    offset = place * size + shift * place
    return shard.VocabularyShard(size, offset, min(max(end - place * size, 0), size), end, group)


def _twice(self: Any, logits: Tensor, column: Tensor, held: Tensor, inverse: float, seen: Any = None) -> Tensor:
    return SWEEP(self, logits, column, held, inverse * inverse, seen)


def _in_place(self: Any, logits: Tensor, column: Tensor, held: Tensor, inverse: float, seen: Any = None) -> Tensor:
    result = SWEEP(self, logits, column, held, inverse, seen)
    logits.data.mul_(0.5)
    return result


def _in_bfloat16(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return total.copy_((total.bfloat16() + (left @ right).bfloat16()).to(total.dtype))


SWEEP = tile.TorchKernels.sweep
# name: (patches, smallest number of ranks at which it is a bug)
MUTATIONS: dict[str, tuple[Callable[[], Any], int]] = {
    "plain all_reduce under autograd": (lambda: replaced(checks, "token_statistics", plain_all_reduce), 2),
    "d_hidden is not reduced": (lambda: replaced(lm_head.collectives, "all_reduce_sum", lambda tensor, _: tensor), 2),
    "padded columns counted": (
        lambda: replaced(shard.VocabularyShard, "of", lambda *words: _of(*words, padding=True)),
        1,
    ),
    "wrong vocabulary offset": (lambda: replaced(shard.VocabularyShard, "of", lambda *words: _of(*words, shift=1)), 2),
    "temperature applied twice": (lambda: replaced(tile.TorchKernels, "sweep", _twice), 1),
    "input overwritten": (lambda: replaced(tile.TorchKernels, "sweep", _in_place), 1),
    "summed in bfloat16": (lambda: replaced(head, "add_product", _in_bfloat16), 1),
    "statistics in the input's dtype": (lambda: replaced(statistics, "inverse_of", lambda t: 1.001 / t), 1),
}


def is_caught(name: str, group: dist.ProcessGroup | None) -> bool:
    with MUTATIONS[name][0]():
        try:
            everything(group, range(6))
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("name", [name for name, (_, ranks) in MUTATIONS.items() if ranks == 1])
def test_seeded_bug_is_caught(name: str) -> None:
    assert is_caught(name, None)


def caught_on_this_rank() -> dict[str, bool]:
    # Each rank by itself: one that stops at its assertion leaves the others' collectives waiting, so every check runs to
    # its end on all of them and only then is the verdict shared.
    return {name: bool(caught_together(name)) for name in MUTATIONS}


def caught_together(name: str) -> int:
    verdict = torch.zeros(())
    with MUTATIONS[name][0]():
        for seed in range(6):
            for dtype in (torch.float64, torch.float32):
                for check in (checks.check_statistics, checks.check_head):
                    try:
                        check(checks.make(seed, dist.get_world_size(), dtype), dist.group.WORLD)
                    except AssertionError:
                        verdict.fill_(1.0)
                    dist.barrier()
    dist.all_reduce(verdict)
    return int(verdict)


@pytest.mark.slow
def test_seeded_bugs_are_caught_on_two_ranks() -> None:
    first, second = run_on_ranks(caught_on_this_rank, 2)
    assert all(first.values()) and first == second, first
