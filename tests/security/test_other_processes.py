"""No program acts on a process but itself: its limits, its place on the processors, its memory."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator

import pytest
from support.hostile_programs import Trainer

ATTEMPTS = {
    "prlimit, time": "call(302, VICTIM, 0, struct.pack('QQ', 1, 1), 0)",
    "prlimit, files": "call(302, VICTIM, 7, struct.pack('QQ', 3, 3), 0)",
    "prlimit, to read": "call(302, VICTIM, 7, 0, ctypes.create_string_buffer(16))",
    "setpriority": "call(141, 0, VICTIM, 19)",
    "setpriority, a group": "call(141, 1, 0, 19)",
    "setpriority, a user": "call(141, 2, 0, 19)",
    "sched_setaffinity": "call(203, VICTIM, 8, struct.pack('Q', 1))",
    "sched_setscheduler": "call(144, VICTIM, 3, struct.pack('i', 0))",
    "sched_setparam": "call(142, VICTIM, struct.pack('i', 0))",
    "sched_setattr": "call(314, VICTIM, struct.pack('IIQiIQQQ', 48, 3, 0, 5, 0, 0, 0, 0), 0)",
    "ioprio_set": "call(251, 1, VICTIM, 3 << 13)",
    "migrate_pages": "call(256, VICTIM, 1, struct.pack('Q', 1), struct.pack('Q', 1))",
    "move_pages": "call(279, VICTIM, 0, 0, 0, 0, 0)",
    "process_madvise": "call(440, 0, 0, 0, 0, 0)",
    "kcmp": "call(312, VICTIM, VICTIM, 1, 0, 0)",
    "get_robust_list": "call(274, VICTIM, ctypes.create_string_buffer(8), ctypes.create_string_buffer(8))",
    "setpgid": "call(109, VICTIM, 0)",
    "ptrace": "call(101, 16, VICTIM, 0, 0)",
    "wait for others": "call(247, 1, VICTIM, 0, 4, 0)",
}


@pytest.fixture
def victim() -> Iterator[subprocess.Popen]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def state(pid: int) -> tuple:
    limits = [resource.prlimit(pid, kind) for kind in (resource.RLIMIT_CPU, resource.RLIMIT_NOFILE)]
    return limits, os.getpriority(os.PRIO_PROCESS, pid), os.sched_getaffinity(pid), os.sched_getscheduler(pid)


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_only_itself(trainer: Trainer, victim: subprocess.Popen, attempt: str) -> None:
    before = state(victim.pid)
    value, reason = trainer.run(f"import struct\nreport({ATTEMPTS[attempt].replace('VICTIM', str(victim.pid))})")
    assert state(victim.pid) == before
    assert value == 1.0, reason


def test_its_own_limits_are_its_own(trainer: Trainer) -> None:
    """What programs do to recurse deeply; no limit is lifted by it."""
    program = """
import resource, threading
hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
resource.setrlimit(resource.RLIMIT_STACK, (hard, hard))
sys.setrecursionlimit(20000)
threading.stack_size(64 << 20)
def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
thread = threading.Thread(target=lambda: print(depth(15000)))
thread.start(); thread.join()
for kind in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
    soft, hard = resource.getrlimit(kind)
    try:
        resource.setrlimit(kind, (hard, hard + 1))
        print("raised")
    except (ValueError, PermissionError):
        pass
"""
    value, reason = trainer.run(program, expected="15000")
    assert value == 1.0, reason
