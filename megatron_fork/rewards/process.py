"""One worker process as the pool sees it: started, written to and read without blocking, and killed."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from megatron_fork.rewards.frames import encode, pop_frame

CHUNK_BYTES = 1 << 16
REPLY_LIMIT_BYTES = 1 << 16
# The time-out is CPU time; a job that sleeps may take this many times as long on the clock.
PATIENCE = 3.0
# The same for a job that could run but gets no processor, or waits for a disk.
PATIENCE_WITH_MACHINE = 20.0
ASLEEP = ("S", "T", "t", "Z", "X")

# No other variable of the parent's environment reaches the worker: no tokens, no launcher's variables.
INHERITED = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "TMPDIR", "TZ", "VIRTUAL_ENV")
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class WorkerProcess:
    """A worker with at most one job. `job` is its index, `deadline` (seconds, monotonic clock) bounds start or job."""

    def __init__(
        self, kind: str, timeout_seconds: float, memory_bytes: int, *, confined: bool, deadline: float
    ) -> None:
        self.ready = False
        self.job: int | None = None
        self.deadline = deadline
        self.timeout_seconds = timeout_seconds
        self._began = self._cpu_at_begin = 0.0
        self._outgoing = memoryview(b"")
        self._incoming = bytearray()
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        module = [sys.executable, "-P", "-m", "megatron_fork.rewards.worker"]
        confinement = "confined" if confined else "free"
        with theirs:
            self.process = subprocess.Popen(
                [*module, kind, str(timeout_seconds), str(memory_bytes), confinement],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=worker_environment(),
                process_group=0,  # a keyboard interrupt reaches only the parent, even before the worker can ignore it
            )

    @property
    def idle(self) -> bool:
        return self.ready and self.job is None

    @property
    def events(self) -> int:
        """The events of `socket` to wait for, for `selectors`."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)

    def alive(self) -> bool:
        return self.process.poll() is None

    def begin(self, index: int, response: str, answer: str) -> None:
        """Queue one job and set its deadline; `pump` sends it."""
        self.job = index
        self._began, self._cpu_at_begin = time.monotonic(), self._cpu_seconds()
        self.deadline = self._began + self.timeout_seconds
        self._outgoing = memoryview(encode([index, response, answer]))

    def granted_more_time(self) -> bool:
        """Called at the deadline: if the job has not had its CPU time yet, move the deadline and return True."""
        left = self.timeout_seconds - (self._cpu_seconds() - self._cpu_at_begin)
        patience = PATIENCE if status(self.process.pid)[0] in ASLEEP else PATIENCE_WITH_MACHINE
        last = self._began + patience * self.timeout_seconds
        if self.job is None or left <= 0 or time.monotonic() >= last:
            return False
        self.deadline = min(last, time.monotonic() + max(left, 0.01))
        return True

    def pump(self) -> Any | None:
        """Send and receive what is possible; returns one whole message of the worker, or None.

        Raises OSError if the worker is gone, ValueError if what it wrote is not a message.
        """
        with contextlib.suppress(BlockingIOError):
            while self._outgoing:
                self._outgoing = self._outgoing[self.socket.send(self._outgoing) :]
        with contextlib.suppress(BlockingIOError):
            chunk = self.socket.recv(CHUNK_BYTES)
            if not chunk:
                raise ConnectionResetError("the worker closed its end")
            self._incoming += chunk
        return pop_frame(self._incoming, limit_bytes=REPLY_LIMIT_BYTES)

    def kill(self) -> None:
        """End the worker and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self.socket.close()

    def _cpu_seconds(self) -> float:
        """User and system time of the worker and of all that it has started."""
        return sum(int(ticks) for pid in family(self.process.pid) for ticks in status(pid)[11:15]) / CLOCK_TICKS


def status(pid: int) -> list[str]:
    """The kernel's line about a process, from its state on; that of a dead process if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X"]


def family(pid: int) -> list[int]:
    """A process with one thread, and all its descendants, if the kernel lists children."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(member for child in children for member in family(int(child)))]


def worker_environment() -> dict[str, str]:
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    environment["PYTHONHASHSEED"] = "0"  # sympy orders by hash in places; a verdict must not change between workers
    environment["OMP_NUM_THREADS"] = "1"
    return environment
