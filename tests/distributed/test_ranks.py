"""The helper that starts ranks returns every rank's result, shows a rank's traceback, and never hangs."""

import time

import pytest
import torch
import torch.distributed as dist
from support.ranks import run_on_ranks


def add_ranks(offset: int) -> tuple[int, float]:
    total = torch.tensor(float(dist.get_rank() + offset))
    dist.all_reduce(total)
    return dist.get_rank(), total.item()


def fail_on_the_second() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the second rank is unwell")
    dist.barrier()


@pytest.mark.slow
def test_results_come_in_rank_order() -> None:
    assert run_on_ranks(add_ranks, 3, 10) == [(0, 33.0), (1, 33.0), (2, 33.0)]


@pytest.mark.slow
def test_a_failing_rank_ends_all() -> None:
    with pytest.raises(Exception, match=r"(?s)fail_on_the_second.*the second rank is unwell"):
        run_on_ranks(fail_on_the_second, 2, time_limit=60.0)


@pytest.mark.slow
def test_a_hanging_rank_is_killed() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="sleep on 2 ranks took more than 2 s"):
        run_on_ranks(time.sleep, 2, 100, time_limit=2.0)
    assert time.monotonic() - began < 30.0
