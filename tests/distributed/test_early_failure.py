"""A rank that alone fails before the ranks have met says so, by its number and host, and all of them end within a minute.

What the first rank fails by too, or several alike, is printed once. Nobody ends the ranks here, as a launcher would.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from support.commands import QUICKSTART, environment
from support.ranks import run_on_ranks

from megatron_fork import distributed
from megatron_fork.errors import ConfigError, RankLostError

HOST = socket.gethostname()


def end_of_rank(port: int, failing: Sequence[int], delays: Sequence[float], has_store: bool) -> tuple[str, str]:
    """What becomes of this rank where those of `failing` do not come, and whose failure it has heard of."""
    rank = dist.get_rank()
    place: dict[str, Any] = {"RANK": rank, "WORLD_SIZE": len(delays), "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = str(has_store)
    dist.barrier()
    dist.destroy_process_group()
    time.sleep(delays[rank])
    if rank in failing:
        with distributed.telling_others(ConfigError(f"recipe {rank} is absent")) as is_alone:
            return "speaks" if rank == 0 or is_alone else "is silent", ""
    try:
        distributed.initialize()
    except RankLostError as error:
        return "hears", error.message
    return "meets", ""


LATE_FIRST, EARLY_FIRST = (1.5, 0.0, 0.5), (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("failing", "delays", "has_store"),
    [
        ((1,), EARLY_FIRST, False),
        ((1, 2), LATE_FIRST, False),
        ((0,), EARLY_FIRST, False),
        ((0, 1, 2), LATE_FIRST, False),
        ((), LATE_FIRST, False),
        ((2,), LATE_FIRST, True),
        ((0, 1, 2), LATE_FIRST, True),
    ],
)
def test_one_speaks_and_all_others_hear(failing: tuple[int, ...], delays: tuple[float, ...], has_store: bool) -> None:
    held = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if has_store else None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = held.port if held else free.getsockname()[1]
    ends = run_on_ranks(end_of_rank, len(delays), port, failing, delays, has_store)
    assert [end for end, _ in ends].count("speaks") == min(1, len(failing))
    for rank, (end, heard) in enumerate(ends):
        if rank in failing:
            assert end in ("speaks", "is silent")
        else:
            assert end == ("hears" if failing else "meets"), ends
            assert not failing or any(f"rank {each} on {HOST} failed first: recipe {each}" in heard for each in failing)
    assert 0 not in failing or ends[0][0] == "speaks", "what all meet is the first rank's to say"


def ends(words: dict[int, list[str]], tmp_path: Path) -> list[tuple[int, str]]:
    """(exit code, output) of each rank: `words` of the program are those of its rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank, each in words.items():
        place = {
            "RANK": rank,
            "WORLD_SIZE": len(words),
            "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-m", "megatron_fork", *each],
                env={**environment(), **{name: str(value) for name, value in place.items()}},
                cwd=tmp_path,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        return [(each.wait(120), each.communicate()[0]) for each in ranks]
    finally:
        for each in ranks:
            each.kill()


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error: ")]


TRAIN = ["train", str(QUICKSTART), "run.folder=run"]


@pytest.mark.slow
def test_a_recipe_that_is_not_on_one_node(tmp_path: Path) -> None:
    (code, first), (own_code, own), (_, third) = ends({0: TRAIN, 1: ["train", "absent.yaml"], 2: TRAIN}, tmp_path)
    assert code == own_code == 2
    (line,) = errors(own)
    assert line.startswith(f"error: rank 1 on {HOST}: ") and "absent.yaml" in line
    (line,) = errors(first)
    assert line.startswith(f"error: rank 1 on {HOST} failed first: ") and "absent.yaml" in line
    assert not errors(third) and "Traceback" not in first + own + third
