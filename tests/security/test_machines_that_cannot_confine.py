"""Where a machine cannot confine a program, none is run: one line says what is missing, before anything is started."""

from __future__ import annotations

import os

import pytest
from support.expected_skips import python_for_everybody
from support.hostile_programs import LANDLOCK, NAMESPACES, RUNS_HERE, SECCOMP, Trainer

pytestmark = pytest.mark.skipif(not RUNS_HERE, reason="system calls are refused by their numbers on x86-64")


@pytest.mark.parametrize(
    ("refusing", "names"),
    [(LANDLOCK, ["Landlock"]), (SECCOMP, ["seccomp"]), ((*LANDLOCK, *SECCOMP), ["Landlock", "seccomp"])],
)
def test_it_is_refused_by_one_line(refusing: tuple[int, ...], names: list[str]) -> None:
    with Trainer(refusing=refusing) as trainer:
        error = trainer.started["error"]
        assert all(name in error for name in names)
        assert "rewards.kind=code" in error
        assert "\n" not in error
        assert trainer.started["hint"]


@pytest.mark.parametrize("call", LANDLOCK[1:])
def test_a_worker_that_finds_it_out_says_so(call: int) -> None:
    """What passes as there when it is asked for, and then is not."""
    with Trainer(refusing=(call,)) as trainer:
        assert "programs cannot be confined here" in trainer.started["error"]
        assert "\n" not in trainer.started["error"]


def test_without_counts_of_threads_there_are_none() -> None:
    """Kernels and containers that let nobody count them: a program then has the one that it starts with."""
    with Trainer(refusing=(317,)) as trainer:
        assert "programs: 0 threads" in trainer.started["confinement"]
        value, reason = trainer.run(
            "import threading\ntry:\n    threading.Thread(target=print).start()\n    print('started')\n"
            "except RuntimeError:\n    print('refused')"
        )
        assert value == 1.0, reason


def test_what_holds_is_said() -> None:
    for refusing in ((), NAMESPACES):
        with Trainer(refusing=refusing) as trainer:
            said = " ".join(trainer.started["confinement"])
            assert "Landlock" in said
            assert "seccomp" in said
            assert ("namespace" in said) == (not refusing)


@pytest.mark.skipif(os.geteuid() != 0 or not python_for_everybody(), reason="needs root and a Python of the system")
@pytest.mark.parametrize("refusing", [(), NAMESPACES], ids=["as found", "no namespaces"])
@pytest.mark.parametrize("user", [0, 4711])
def test_whoever_trains_no_program_is_root(user: int, refusing: tuple[int, ...]) -> None:
    program = """
closed = True
for path in ("/etc/passwd", "/proc/self/status", f"/proc/{os.getppid()}/environ", f"/proc/{os.getppid()}/mem"):
    try:
        os.open(path, os.O_RDONLY)
        closed = False
    except OSError:
        pass
print("refused" if closed and 0 not in os.getresuid() and 0 not in os.getgroups() else "root")
"""
    with Trainer(refusing=refusing, interpreter=str(python_for_everybody()), user=user or None) as trainer:
        assert ("programs: not root" in trainer.started["confinement"]) == (user == 0)
        value, reason = trainer.run(program)
        assert value == 1.0, reason
