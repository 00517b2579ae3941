"""Whatever calls a program makes, with whatever arguments: nothing outside it is other than before."""

from __future__ import annotations

import os
import resource
import secrets
import subprocess

import pytest
from support.hostile_programs import Trainer, children_of, eventually, running

FUZZ = """
import random
generator = random.Random(SEED)
text = ctypes.create_string_buffer(b"/tmp/attack\\0" + bytes(4084), 4096)
numbers = ctypes.create_string_buffer(b"".join(generator.choice(PIDS).to_bytes(4, "little") for _ in range(1024)))
values = [*PIDS, -1, 0, 1, 2, 3, 9, 10, 64, 0x2000, 0o102, 1 << 20, 1 << 40, ctypes.addressof(text), ctypes.addressof(numbers)]
# What ends or halts the program itself, or takes its memory from under it, comes to nothing else.
ending = {7, 9, 10, 11, 12, 15, 23, 25, 28, 34, 35, 37, 38, 59, 60, 128, 130, 158, 202, 230, 231, 270, 271, 335, 336}
others = [number for number in range(470) if number not in ending]
for _ in range(3_000):
    call(generator.choice(others), *[generator.choice(values) for _ in range(6)])
os._exit(42)
"""


def state(pid: int) -> tuple[object, ...]:
    limits = [resource.prlimit(pid, kind) for kind in range(16)]
    return limits, os.getpriority(os.PRIO_PROCESS, pid), os.sched_getaffinity(pid), os.sched_getscheduler(pid)


def shared() -> set[str]:
    listed = subprocess.run(["ipcs"], capture_output=True, text=True, check=True).stdout
    return {line for line in listed.splitlines() if line.startswith("0x")}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_nothing_else_changes(trainer: Trainer, seed: int) -> None:
    marker = "marker-" + secrets.token_hex(8)
    with subprocess.Popen(["sleep", "60"]) as victim:
        worker = next(iter(children_of(trainer.process.pid)))
        pids = [victim.pid, trainer.process.pid, worker, *children_of(worker), os.getpid()]
        before = [state(pid) for pid in pids], shared()
        program = FUZZ.replace("SEED", str(seed)).replace("PIDS", str(pids))
        value, reason = trainer.run(f"{program}  # {marker}", seconds=5.0)
        assert value == 0.0, reason
        assert victim.poll() is None and trainer.process.poll() is None
        assert ([state(pid) for pid in pids], shared()) == before
        assert eventually(lambda: not running(marker), 3.0)
        victim.kill()
    assert trainer.run("print('refused')")[0] == 1.0
