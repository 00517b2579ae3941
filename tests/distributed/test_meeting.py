"""Ranks that do not come are named within the given time, by those that did; all that came get the same list of hosts.

So it is however late the ranks come, and though the first one, which holds their store, ends.
"""

import os
import socket
import subprocess
import sys
import time
from typing import Any

import pytest
from support.ranks import run_on_ranks

from megatron_fork.distributed import roll_call
from megatron_fork.errors import LayoutError, UnreachableError

HOLDER = "from megatron_fork.distributed import roll_call\nwith roll_call(seconds=60.0):\n    pass"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answer(port: int, world_size: int, seconds: float) -> Any:
    import torch.distributed as dist

    variables = {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    os.environ.update(variables, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        with roll_call(seconds=seconds) as hosts:
            return hosts
    except LayoutError as error:
        return type(error).__name__, error.message


def test_all_are_there() -> None:
    assert run_on_ranks(answer, 2, free_port(), 2, 60.0) == [[socket.gethostname()] * 2] * 2


def test_a_rank_that_does_not_come_is_named() -> None:
    for kind, message in run_on_ranks(answer, 2, free_port(), 3, 3.0):
        assert (
            kind == "LayoutError" and "1 of 3 ranks did not come" in message and message.partition(" s: ")[2][0] == "2"
        )


def late(port: int, delays: list[float]) -> Any:
    import torch.distributed as dist

    time.sleep(delays[dist.get_rank()])
    return answer(port, len(delays) + 1, 5.0)


@pytest.mark.parametrize("delays", [[0.0, 0.5, 1.5], [1.5, 0.0, 0.0]])
def test_all_that_come_hear_the_same_however_late_they_are(delays: list[float]) -> None:
    """Each counts its time from when it comes: the first rank is through before, or after, another would be."""
    answers = run_on_ranks(late, 3, free_port(), delays)
    assert len(set(answers)) == 1 and "1 of 4 ranks did not come" in answers[0][1], answers


def end_before_the_answer(port: int) -> Any:
    """The first rank is killed while it waits for one that does not come; what the other says."""
    import torch.distributed as dist

    if dist.get_rank() == 1:
        return answer(port, 3, 30.0)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env={**os.environ, "RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    )
    calls = dist.PrefixStore("roll_call/0", dist.TCPStore("127.0.0.1", port, wait_for_workers=False))
    calls.wait(["1"])
    holder.kill()
    holder.wait()
    return None


def test_the_first_rank_ends_before_it_has_called_all() -> None:
    _, (kind, message) = run_on_ranks(end_before_the_answer, 2, free_port())
    assert kind == "UnreachableError" and message.startswith("rank 1 on ") and "no answer of the first rank" in message


def met(port: int) -> int:
    """Connect after the call, on the same port."""
    import torch.distributed as dist

    from megatron_fork.distributed import finalize, initialize

    rank, world_size = dist.get_rank(), dist.get_world_size()
    dist.barrier()  # a rank may still be connecting to this one
    dist.destroy_process_group()
    variables = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    os.environ.update(variables, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with roll_call(seconds=60.0):
        time.sleep(0.2 * (rank == 0))
        initialize()
    together = dist.get_world_size()
    finalize()
    return together


def test_ranks_connect_by_the_store_that_called_them() -> None:
    """However long the first rank takes for that."""
    assert run_on_ranks(met, 3, free_port()) == [3, 3, 3]


def test_the_first_rank_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    port = free_port()
    monkeypatch.setenv("MASTER_PORT", str(port))
    unreachable = pytest.raises(
        UnreachableError, match=rf"rank 1 on .* cannot reach the first rank at 127\.0\.0\.1:{port}"
    )
    with unreachable, roll_call(seconds=1.0):
        pass


def test_alone() -> None:
    with roll_call(seconds=1.0) as hosts:
        assert hosts == [socket.gethostname()]
