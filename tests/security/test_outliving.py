"""A program ends with its trainer, however that one ends and whatever the program does against it."""

from __future__ import annotations

import os
import signal
import time

import pytest
from support.hostile_programs import NAMESPACES, RUNS_HERE, Trainer, children_of, ended, eventually, first_thread_ended

SECONDS = 3.0
THREADS = "has threads that outlive the first"
PROGRAMS = {
    "sleeps": "import time\ntime.sleep(60)",
    "is busy": "while True: pass",
    "wants no signal when its parent ends": "call(157, 1, 0, 0, 0, 0)\nwhile True: pass",
    "ignores signals": """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True: pass
""",
    THREADS: """
import threading, time
def stay():
    while True: pass
threading.Thread(target=stay).start()
call(157, 1, 0, 0, 0, 0)
time.sleep(0.1)
call(60, 0)
""",
    "leaves its group": "call(109, 0, 0)\ncall(112)\nwhile True: pass",
    "closes what it holds": "call(436, 0, 1000, 0)\nwhile True: pass",
    "writes for ever": "while True: os.write(1, b'')",
}


def family(trainer: Trainer) -> list[int]:
    """Worker, and runner where there is one: the forefathers of a program below its trainer."""
    workers = children_of(trainer.process.pid)
    return [*workers, *(child for worker in workers for child in children_of(worker))]


def below(pid: int) -> set[int]:
    return {pid for child in children_of(pid) for pid in (child, *below(child))}


def started(trainer: Trainer, behaviour: str) -> set[int]:
    """Begin a program, and wait until it does what it does; what runs now and did not before."""
    before = below(trainer.process.pid)
    trainer.begin(PROGRAMS[behaviour], seconds=25.0)
    assert eventually(lambda: bool(below(trainer.process.pid) - before), 10.0)
    programs = below(trainer.process.pid) - before
    if behaviour == THREADS:
        assert eventually(lambda: all(map(first_thread_ended, programs)), 10.0)
    time.sleep(0.2)
    return programs


@pytest.mark.skipif(not RUNS_HERE, reason="the attacks name system calls by their numbers on x86-64")
@pytest.mark.parametrize("refusing", [(), NAMESPACES], ids=["as found", "no namespaces"])
@pytest.mark.parametrize("behaviour", PROGRAMS)
def test_it_ends_with_a_killed_trainer(behaviour: str, refusing: tuple[int, ...]) -> None:
    with Trainer(refusing=refusing) as trainer:
        programs = started(trainer, behaviour)
        os.kill(trainer.process.pid, signal.SIGKILL)
    check_end(programs)


def check_end(programs: set[int]) -> None:
    try:
        assert eventually(lambda: all(map(ended, programs)), SECONDS)
    finally:
        for pid in programs:
            if not ended(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(not RUNS_HERE, reason="the attacks name system calls by their numbers on x86-64")
@pytest.mark.parametrize("member", [0, 1], ids=["worker", "runner"])
def test_it_ends_with_whoever_started_it(member: int) -> None:
    """And the next program is run as if nothing had been."""
    with Trainer() as trainer:
        programs = started(trainer, "wants no signal when its parent ends")
        os.kill(family(trainer)[member], signal.SIGKILL)
        check_end(programs)
        assert trainer._answer() == [0.0, "verifier died"]
        assert trainer.run("print('refused')")[0] == 1.0
