"""Ranks that do not come are named within the given time, by those that did; all that came get the same list of hosts."""

import os
import socket
from typing import Any

import pytest
from support.ranks import run_on_ranks

from megatron_fork.distributed import roll_call
from megatron_fork.errors import LayoutError, UnreachableError


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answer(port: int, world_size: int, seconds: float) -> Any:
    import torch.distributed as dist

    variables = {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"}
    os.environ.update(variables, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        return roll_call(seconds=seconds)
    except LayoutError as error:
        return type(error).__name__, error.message


def test_all_are_there() -> None:
    assert run_on_ranks(answer, 2, free_port(), 2, 60.0) == [[socket.gethostname()] * 2] * 2


def test_a_rank_that_does_not_come_is_named() -> None:
    for kind, message in run_on_ranks(answer, 2, free_port(), 3, 3.0):
        assert (
            kind == "LayoutError" and "1 of 3 ranks did not come" in message and message.partition(" s: ")[2][0] == "2"
        )


def test_the_first_rank_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    port = free_port()
    monkeypatch.setenv("MASTER_PORT", str(port))
    with pytest.raises(UnreachableError, match=rf"rank 1 on .* cannot reach the first rank at 127\.0\.0\.1:{port}"):
        roll_call(seconds=1.0)


def test_alone() -> None:
    assert roll_call(seconds=1.0) == [socket.gethostname()]
