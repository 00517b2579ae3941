"""What a program takes is its own memory, bounded and gone with it: nothing of the kernel's lasts or goes uncounted."""

from __future__ import annotations

import subprocess

import pytest
from support.hostile_programs import Trainer

ATTEMPTS = {
    "System V memory": "call(29, 0, 64 << 20, 0o1600)",
    "System V messages": "call(68, 0, 0o1600)",
    "System V semaphores": "call(64, 0, 250, 0o1600)",
    "POSIX messages": "call(240, b'/queue', 0o102, 0o600, 0)",
    "keys": "call(248, b'user', b'attack', bytes(1000), 1000, -4)",
    "keyrings": "call(250, 1, 0)",
    "files in memory": "call(319, b'attack', 0)",
    "secret memory": "call(447, 0)",
    "locked memory": "call(149, 0, 0)",
    "locked memory, all": "call(151, 1)",
    "mapped and locked": "call(9, 0, 1 << 20, 3, 0x2022, -1, 0)",
    "huge pages": "call(9, 0, 1 << 21, 3, 0x40022, -1, 0)",
    "a larger pipe": "call(72, os.pipe()[1], 1031, 1 << 20)",
    "pages kept in a pipe": "call(278, os.pipe()[1], 0, 0, 8)",
    "rings": "call(425, 64, ctypes.create_string_buffer(120))",
    "events": "call(290, 0, 0)",
    "watched descriptors": "call(291, 0)",
    "watched files": "call(294, 0)",
    "timers": "call(222, 0, 0, ctypes.create_string_buffer(8))",
    "timers with a descriptor": "call(283, 0, 0)",
    "signals with a descriptor": "call(289, -1, bytes(8), 8, 0)",
    "programs in the kernel": "call(321, 0, bytes(128), 128)",
    "a fault handler": "call(323, 1)",
    "counters": "call(298, bytes(112), 0, -1, -1, 0)",
    "locks on files": "call(73, 0, 1)",
    "locks on spans of files": "call(72, 0, 6, bytes(32))",
    "asynchronous reads": "call(206, 128, ctypes.create_string_buffer(8))",
}


def segments() -> set[str]:
    """System V objects that this process sees, by kind and number."""
    listed = subprocess.run(["ipcs"], capture_output=True, text=True, check=True).stdout
    return {line for line in listed.splitlines() if line.startswith("0x")}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_nothing_outside_its_own_memory(trainer: Trainer, attempt: str) -> None:
    before = segments()
    value, reason = trainer.run(f"report({ATTEMPTS[attempt]})")
    assert segments() == before
    assert value == 1.0, f"{attempt}: {reason}"


MANY_THREADS = """
import threading, time
started = 0
try:
    for _ in range(300):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        started += 1
except RuntimeError:
    pass
print("refused" if 8 <= started <= 64 else f"{started} threads", flush=True)
os._exit(0)
"""
# Threads that no limit on address space bounds: all on one stack, where each pauses for ever.
BARE_THREADS = """
import mmap
stack = ctypes.create_string_buffer(1 << 16)
top = (ctypes.addressof(stack) + (1 << 16)) & ~15
code = mmap.mmap(-1, 4096, prot=7)
# clone(flags, stack, 0, 0, 0); whoever finds 0 calls pause() again and again, the other returns what it found
code.write(bytes.fromhex("31d2 4d31d2 4d31c0 b838000000 0f05 85c0 7401 c3 b822000000 0f05 ebf7"))
place = ctypes.addressof(ctypes.c_char.from_buffer(code))
start = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_long, ctypes.c_long)(place)
started = sum(start(FLAGS, top) > 0 for _ in range(300))
print("refused" if started <= 64 else f"{started} threads", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    "program",
    [MANY_THREADS, BARE_THREADS.replace("FLAGS", "0x3D0F00"), BARE_THREADS.replace("FLAGS", "0x10F00")],
    ids=["threads of Python", "threads without memory", "threads of another sort"],
)
def test_threads_are_counted(trainer: Trainer, program: str) -> None:
    value, reason = trainer.run(program)
    assert value == 1.0, reason


def test_the_next_program_may_have_as_many(trainer: Trainer) -> None:
    for _ in range(2):
        value, reason = trainer.run(MANY_THREADS)
        assert value == 1.0, reason


def test_output_is_bounded(trainer: Trainer) -> None:
    assert trainer.run("while True: sys.stdout.write('x' * 100000)") == (0.0, "test 1 of 1: its output is too long")
    value, reason = trainer.run("print('x' * (8 << 20))", expected="x" * (8 << 20))
    assert value == 1.0, reason
