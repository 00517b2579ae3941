"""One command with a time limit: it is stopped with all of its descendants, also those that have left its session."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

# What a process may take to end when it is asked to, before it is killed.
GRACE_SECONDS = 3.0
_PR_SET_CHILD_SUBREAPER = 36


class Stopped(BaseException):
    """A signal came. Not an `Exception`: nothing that handles errors may keep the program from ending."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def signals_stop() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise `Stopped` where the program is; a second one does nothing while it ends."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(number: int, _: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def adopt_orphans() -> None:
    """Descendants whose parent has ended become this process's children, so that they can be found and ended."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def run(command: Sequence[str], limit: float, log: Path, variables: Mapping[str, str], cwd: Path) -> int | None:
    """The exit code, None where the limit came first; output is added to `log`, and nothing of it is left running."""
    before = descendants(os.getpid())
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            cwd=cwd,
            start_new_session=True,
        )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process, before)


def _end(process: subprocess.Popen[bytes], before: set[int]) -> None:
    """Ask the process and its group to end, then kill all that was not there `before`."""
    if process.poll() is None:
        _signal(os.killpg, process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    _signal(os.killpg, process.pid, signal.SIGKILL)
    # An orphan is a child of this process as soon as its parent has ended, and then it is found.
    until = time.monotonic() + GRACE_SECONDS
    while (left := descendants(os.getpid()) - before) and time.monotonic() < until:
        for pid in left:
            _signal(os.kill, pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        process.poll()
        time.sleep(0.02)


def descendants(pid: int) -> set[int]:
    """Its children, their children, and so on, by /proc: those that have ended are not among them."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            # The name stands in brackets and may hold anything.
            state, parent = path.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(path.parent.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def _signal(send: Callable[[int, int], None], pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(pid, number)
