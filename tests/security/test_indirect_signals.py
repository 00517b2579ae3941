"""No program has another send a signal for it: through who owns a descriptor, a timer, a queue or a terminal."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from support.hostile_programs import Trainer

# Each makes `VICTIM` the owner of a pipe that then gets input, with SIGKILL as the signal to send.
OWNERS = {
    "F_SETOWN": "fcntl.fcntl(reading, 8, VICTIM)",
    "F_SETOWN_EX": "fcntl.fcntl(reading, 15, struct.pack('ii', 1, VICTIM))",
    "FIOSETOWN": "fcntl.ioctl(reading, 0x8901, struct.pack('i', VICTIM))",
    "SIOCSPGRP": "fcntl.ioctl(reading, 0x8902, struct.pack('i', VICTIM))",
}
WAYS_ON = {
    "O_ASYNC": "fcntl.fcntl(reading, 4, 0x2000)",
    "FIOASYNC": "fcntl.ioctl(reading, 0x5452, struct.pack('i', 1))",
}
ATTACK = """
import fcntl, struct
reading, writing = os.pipe()
results = []
def attempt(action):
    try:
        action()
        results.append("worked")
    except (PermissionError, OSError) as error:
        results.append(-error.errno)
attempt(lambda: OWNER)
attempt(lambda: fcntl.fcntl(reading, 10, 9))
attempt(lambda: WAY_ON)
os.write(writing, b"x")
report(*[result for result in results if result != -25])  # -25: not for a pipe
"""


@pytest.fixture
def victim() -> Iterator[subprocess.Popen]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("way_on", WAYS_ON)
@pytest.mark.parametrize("owner", OWNERS)
def test_nobody_is_made_the_owner_of_a_pipe(
    trainer: Trainer, victim: subprocess.Popen, owner: str, way_on: str
) -> None:
    program = ATTACK.replace("OWNER", OWNERS[owner]).replace("WAY_ON", WAYS_ON[way_on])
    value, reason = trainer.run(program.replace("VICTIM", str(victim.pid)))
    assert victim.poll() is None, f"a program killed another process with {owner}"
    assert value == 1.0, reason


@pytest.mark.parametrize(
    ("name", "attempt"),
    [
        ("timer_create", "call(222, 0, struct.pack('qiii48x', 0, 9, 4, VICTIM), ctypes.create_string_buffer(8))"),
        ("mq_notify", "call(244, 0, 0)"),
        ("F_NOTIFY", "call(72, 0, 1026, 1)"),
        ("F_SETLEASE", "call(72, 0, 1024, 0)"),
        ("TIOCSTI", "call(16, 0, 0x5412, 0)"),
        ("prctl, at the death of a parent", "call(157, 1, 9, 0, 0, 0)"),
        ("kill", "call(62, VICTIM, 0)"),
        ("kill, everybody", "call(62, -1, 0)"),
        ("tkill", "call(200, VICTIM, 0)"),
        ("tgkill", "call(234, VICTIM, VICTIM, 0)"),
        ("rt_sigqueueinfo", "call(129, VICTIM, 0, bytes(128))"),
        ("pidfd_open", "call(434, VICTIM, 0)"),
        ("pidfd_send_signal", "call(424, 0, 0, 0, 0)"),
    ],
)
def test_no_other_way_to_signal(trainer: Trainer, victim: subprocess.Popen, name: str, attempt: str) -> None:
    value, reason = trainer.run(f"import struct\nreport({attempt.replace('VICTIM', str(victim.pid))})")
    assert victim.poll() is None
    assert value == 1.0, f"{name}: {reason}"
