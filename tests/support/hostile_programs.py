"""A trainer of its own for hostile programs: a process with a pool of `kind: code`, and a secret in its environment.

`Trainer(refusing=...)` puts it where the kernel refuses it some system calls, as the runtimes of containers have it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import secrets
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

# By number on x86-64, where these tests run.
NAMESPACES = (272, 308)  # unshare, setns
LANDLOCK = (444, 445, 446)
SECCOMP = (317, 157)  # also through prctl
RUNS_HERE = platform.machine() == "x86_64"
SETTINGS = {"kind": "code", "allow_code": True, "timeout_seconds": 30.0}

# What hostile programs start with: any system call by number; negative results are errors.
PROJECT = Path(__file__).parents[2]
PRELUDE = """
import ctypes, os, sys
_library = ctypes.CDLL(None, use_errno=True)
def call(number, *given):
    whole = [ctypes.c_long(each) if isinstance(each, int) else each for each in (number, *given)]
    result = _library.syscall(*whole)
    return -ctypes.get_errno() if result == -1 else result
def report(*results):
    print("done", results) if any(result not in (-1, -13, -38) for result in results) else print("refused")
"""


class Trainer:
    """Close it, or use it in a `with`."""

    def __init__(
        self,
        *,
        refusing: tuple[int, ...] = (),
        interpreter: str = sys.executable,
        user: int | None = None,
        **settings: object,
    ) -> None:
        # Here, since a Python for everybody has nothing that checks settings.
        from megatron_fork.rewards import RewardsConfig

        config = RewardsConfig(**(SETTINGS | settings))
        self.secret = "secret-" + secrets.token_hex(8)
        self.process = subprocess.Popen(
            [interpreter, __file__, json.dumps(refusing), json.dumps(asdict(config) | {"verifier": config.verifier})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"API_KEY": self.secret, "PYTHONPATH": str(PROJECT)},
            text=True,
            user=user,
            group=user,
            extra_groups=[] if user else None,
        )
        self.started = self._answer()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def begin(self, program: str, *, expected: str = "refused", given: str = "", seconds: float = 20.0) -> None:
        tests = {"tests": [{"input": given, "output": expected}], "seconds": seconds}
        json.dump([f"```python\n{PRELUDE}{program}\n```", json.dumps(tests)], self.process.stdin)
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def run(self, program: str, **given: object) -> tuple[float, str]:
        """Value and reason of one program, which passes by printing `expected`."""
        self.begin(program, **given)
        value, reason = self._answer()
        return value, reason

    def _answer(self):
        line = self.process.stdout.readline()
        assert line, "the trainer died"
        return json.loads(line)


def refuse(calls: tuple[int, ...]) -> None:
    """Have the kernel answer these system calls with EPERM in this process and all that it starts."""
    step = struct.Struct("HBBI").pack
    steps = [step(0x20, 0, 0, 0)]
    for number in calls:
        if number == 157:  # prctl: only to install filters
            steps += [
                step(0x15, 0, 4, 157),
                step(0x20, 0, 0, 16),
                step(0x15, 0, 1, 22),
                step(0x06, 0, 0, 0x50000 | errno.EINVAL),
            ]
            steps += [step(0x06, 0, 0, 0x7FFF0000)]
        else:
            steps += [step(0x15, 0, 1, number), step(0x06, 0, 0, 0x50000 | errno.EPERM)]
    program = b"".join([*steps, step(0x06, 0, 0, 0x7FFF0000)])

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))

    whole = Filter(len(program) // 8, program)
    library = ctypes.CDLL(None)
    assert library.prctl(38, 1, 0, 0, 0) == 0
    assert library.prctl(22, 2, ctypes.byref(whole), 0, 0) == 0


def running(marker: str) -> set[int]:
    """The processes that have `marker` on their command line."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker.encode() in (folder / "cmdline").read_bytes() and not ended(int(folder.name)):
                found.add(int(folder.name))
    return found


def first_thread_ended(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][1] == "Z"


def ended(pid: int) -> bool:
    """With all its threads; nobody may be there to reap it."""
    try:
        return first_thread_ended(pid) and len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
    except OSError:
        return True


def children_of(pid: int) -> set[int]:
    """None where it is gone."""
    found: set[int] = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(map(int, file.read_text().split()))
    return found


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def main() -> None:
    from megatron_fork.rewards import RewardError, RewardPool

    refuse(tuple(json.loads(sys.argv[1])))
    try:
        with RewardPool(SimpleNamespace(**json.loads(sys.argv[2]))) as pool:
            pool.warm(seconds=30.0)
            print(json.dumps({"confinement": pool.confinement}), flush=True)
            for line in sys.stdin:
                result = pool.score_many([tuple(json.loads(line))])[0]
                print(json.dumps([result.value, result.reason]), flush=True)
    except RewardError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}), flush=True)


if __name__ == "__main__":
    main()
