"""One worker process as the pool sees it: spawned, fed and read without ever blocking, killed."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import sys
from typing import Any

from megatron_fork.rewards.frames import encode, pop_frame

CHUNK_BYTES = 1 << 16
REPLY_LIMIT_BYTES = 1 << 16

# Nothing else of the parent's environment reaches the worker: no tokens, no launcher's variables.
INHERITED = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "TMPDIR", "TZ", "VIRTUAL_ENV")


class WorkerProcess:
    """A worker with at most one job. `job` is its index, `deadline` (seconds, monotonic clock) bounds start or job."""

    def __init__(self, kind: str, timeout_seconds: float, memory_bytes: int, *, deadline: float) -> None:
        self.ready = False
        self.job: int | None = None
        self.deadline = deadline
        self._outgoing = memoryview(b"")
        self._incoming = bytearray()
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        module = [sys.executable, "-P", "-m", "megatron_fork.rewards.worker"]
        with theirs:
            self.process = subprocess.Popen(
                [*module, kind, str(timeout_seconds), str(memory_bytes)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=worker_environment(),
                process_group=0,  # a keyboard interrupt reaches the parent alone, also before the worker can ignore it
            )

    @property
    def idle(self) -> bool:
        return self.ready and self.job is None

    @property
    def events(self) -> int:
        """What to wait for on `socket`, for `selectors`."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)

    def alive(self) -> bool:
        return self.process.poll() is None

    def begin(self, index: int, response: str, answer: str, *, deadline: float) -> None:
        """Queue one job; `pump` sends it."""
        self.job, self.deadline = index, deadline
        self._outgoing = memoryview(encode([index, response, answer]))

    def pump(self) -> Any | None:
        """Move the bytes that can be moved; one whole message of the worker, or None.

        Raises OSError where the worker is gone, ValueError where it wrote no message.
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
        self.process.kill()
        self.process.wait()
        self.socket.close()


def worker_environment() -> dict[str, str]:
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    environment["PYTHONHASHSEED"] = "0"  # sympy orders by hash in places; a verdict must not change between workers
    environment["OMP_NUM_THREADS"] = "1"
    return environment
