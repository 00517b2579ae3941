"""On a CPU the network's passes take two threads where a process is alone on two cores, and everything else one; what
OMP_NUM_THREADS says holds everywhere.
"""

from __future__ import annotations

import os

import pytest
import torch

from megatron_fork import distributed

LAUNCHERS = (
    {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
    {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="beside a GPU torch's own number holds")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch):
    for name in ("OMP_NUM_THREADS", *{name for launcher in LAUNCHERS for name in launcher}):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def threads_of_a_pass() -> int:
    with distributed.threads_of_a_pass():
        return torch.get_num_threads()


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 2), (64, 2)])
def test_a_lone_process(monkeypatch: pytest.MonkeyPatch, cores: int, expected: int):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    said = distributed.choose_threads()
    assert torch.get_num_threads() == 1
    assert threads_of_a_pass() == expected
    assert said.startswith(f"1 thread per process, {expected} for the network's passes")


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda launcher: next(iter(launcher)))
def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch, launcher: dict[str, str]):
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    distributed.choose_threads()
    assert threads_of_a_pass() == 1


def test_the_users_word_holds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)  # as torch does by itself when it is imported
    distributed.choose_threads()
    assert torch.get_num_threads() == threads_of_a_pass() == 3


def test_the_number_is_restored_after_an_error():
    distributed.choose_threads()
    with pytest.raises(ValueError, match="in a pass"), distributed.threads_of_a_pass():
        raise ValueError("in a pass")
    assert torch.get_num_threads() == 1
