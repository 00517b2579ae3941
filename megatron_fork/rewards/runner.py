"""The process that runs programs, one at a time: it gets a program and its input, never the expected output.

A worker forks it before the first response arrives and talks to it over a socket: `[program, input, seconds]` goes in,
`[ending, output]` comes out. When the trainer, the worker or the runner ends, the kernel kills its children, and a program
cannot undo that.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, NoReturn

from megatron_fork.rewards import confinement, landlock
from megatron_fork.rewards.filters import install
from megatron_fork.rewards.frames import encode, received
from megatron_fork.rewards.score import RewardError
from megatron_fork.rewards.system_calls import (
    MAX_THREADS,
    ThreadCount,
    ask_about_threads,
    forbid_side_effects,
    program_filter,
)

CHUNK_BYTES = 1 << 16
MAX_OUTPUT_BYTES = 16 << 20
FINISHED, FAILED, LATE, TOO_LONG = "finished", "failed", "late", "too long"

PROBE_SECONDS = 60.0
# Each of these must fail; otherwise programs are not confined on this machine, and none is run.
PROBE = """
import os, socket, fcntl, resource
parent = os.getppid()
tried = {
    "open a file": lambda: os.open("/proc/self/status", os.O_RDONLY),
    "list a folder": lambda: os.listdir("/"),
    "write a file": lambda: os.open("/dev/null", os.O_WRONLY),
    "make a socket": socket.socket,
    "start a process": lambda: os.fork() or os._exit(0),
    "signal": lambda: os.kill(parent, 0),
    "have signals sent": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, parent),
    "change limits of others": lambda: resource.prlimit(parent, resource.RLIMIT_CORE),
    "be another user": lambda: os.setuid(0),
}
for name, attempt in tried.items():
    try:
        attempt()
        print(name)
    except PermissionError:
        pass
"""


class Programs:
    """A worker's connection to its runner. Making one forks: the process must have one thread.

    `holds` says what confines programs. Raises RewardError if this machine cannot confine them.
    """

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        worker = os.getpid()
        if os.fork() == 0:
            self._channel.close()
            _live_as_runner(theirs, worker)
        theirs.close()
        self._replies = received(self._channel)
        self.holds: list[str] = self._reply()

    def run(self, program: str, given: str, seconds: float) -> tuple[str, str]:
        """How the program ended with this input, and what it wrote to its standard output."""
        self._channel.sendall(encode([program, given, seconds]))
        ending, output = self._reply()
        return ending, output

    def _reply(self) -> Any:
        message = next(self._replies, {"error": "the process that runs them ended"})
        if isinstance(message, dict):
            raise RewardError(
                f"rewards.kind=code: programs cannot be confined here: {message['error']}",
                hint="the project's docs/security.md says what confinement needs",
            )
        return message


def _live_as_runner(channel: socket.socket, worker: int) -> NoReturn:
    """Serve until the worker is gone; never returns into the worker's code."""
    status = 1
    try:
        serve(channel, worker)
        status = 0
    except ConnectionError:
        status = 0  # the worker is gone
    except BaseException as error:
        with contextlib.suppress(OSError):
            channel.sendall(encode({"error": " ".join(f"{type(error).__name__}: {error}".split())}))
    finally:
        os._exit(status)


def serve(channel: socket.socket, worker: int) -> None:
    runner = Runner(channel)
    holds = runner.confine()
    if os.getppid() != worker:
        raise ConnectionResetError("the worker is gone")
    ending, output = runner.run(PROBE, "", PROBE_SECONDS)
    if (ending, output) != (FINISHED, ""):
        could = ", ".join(output.splitlines())
        raise OSError(f"a program could {could}" if could else f"a first, harmless program is {ending}")
    channel.sendall(encode(holds))
    for program, given, seconds in received(channel):
        channel.sendall(encode(runner.run(program, given, seconds)))


class Runner:
    """Runs programs for the process behind `channel`."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._interpreter = Path(sys.executable).resolve()
        self._threads: ThreadCount | None = None
        self._rules = self._nowhere = -1
        self._filter = b""

    def confine(self) -> list[str]:
        """Give up what programs must not inherit, and prepare what they get; returns what holds, in words. Raises OSError."""
        self._nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(self._nowhere, 0)  # the pool's socket belongs to the worker
        holds = ["programs: no files but Python's, no memory of others (Landlock)"]
        self._rules = landlock.rules_for(self._interpreter)
        if confinement.become_nobody(self._interpreter):
            holds.append("programs: not root")
        if confinement.leave_networks():
            holds.append("programs: no network (namespace)")
        confinement.drop_capabilities()
        confinement.bound_descriptors()
        confinement.hide()
        confinement.die_with_parent()
        if not forbid_side_effects(processes=True):
            raise OSError("no filter of system calls")
        holds.append("programs: system calls of a computation only (seccomp)")
        listener = ask_about_threads()
        self._threads = ThreadCount(listener) if listener is not None else None
        self._filter = program_filter(threads=self._threads is not None)
        holds.append(f"programs: {MAX_THREADS if self._threads else 0} threads")
        return holds

    def run(self, program: str, given: str, seconds: float) -> tuple[str, str]:
        """Run one program to its end; returns how it ended, and its output. No thread of it is left."""
        me = os.getpid()

        def restrict() -> None:
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
            confinement.die_with_parent()
            if os.getppid() != me:
                os._exit(1)
            landlock.restrict(self._rules)
            if not install(self._filter):
                raise OSError("no filter of system calls")

        if self._threads:
            self._threads.left = MAX_THREADS
        with subprocess.Popen(
            [self._interpreter, "-I", "-S", "-B", "-c", program.encode("utf-8", "replace")],
            env={},
            cwd="/",
            preexec_fn=restrict,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._nowhere,
        ) as process:
            try:
                ending, output = self._follow(process, given.encode("utf-8", "replace"), time.monotonic() + seconds)
            finally:
                process.kill()
        if ending == FINISHED and process.returncode:
            ending = FAILED
        return ending, output.decode("utf-8", "replace") if ending == FINISHED else ""

    def _follow(self, process: subprocess.Popen[bytes], given: bytes, deadline: float) -> tuple[str, bytes]:
        """Write to a program and read from it until it has ended, has written too much or is late.

        Raises ConnectionError if the worker ends meanwhile.
        """
        assert process.stdin is not None and process.stdout is not None
        left, output, ended = memoryview(given), bytearray(), False
        with contextlib.ExitStack() as opened:
            selector = opened.enter_context(selectors.DefaultSelector())
            end = confinement.descriptor_of(process.pid)
            opened.callback(os.close, end)
            selector.register(self._channel, selectors.EVENT_READ, "worker")
            selector.register(end, selectors.EVENT_READ, "end")
            selector.register(process.stdout, selectors.EVENT_READ, "output")
            selector.register(process.stdin, selectors.EVENT_WRITE, "input")
            if self._threads:
                selector.register(self._threads.descriptor, selectors.EVENT_READ, "thread")
            os.set_blocking(process.stdin.fileno(), False)
            while not ended:
                seconds = deadline - time.monotonic()
                if seconds <= 0:
                    return LATE, b""
                for what in [key.data for key, _ in selector.select(seconds)]:
                    if what == "worker":
                        raise ConnectionResetError("the worker is gone")
                    if what == "thread" and self._threads:
                        self._threads.answer()
                    elif what == "output":
                        chunk = os.read(process.stdout.fileno(), CHUNK_BYTES)
                        output += chunk
                        if not chunk:
                            selector.unregister(process.stdout)
                    elif what == "input":
                        left = _written(process.stdin, left)
                        if not left:
                            selector.unregister(process.stdin)
                            process.stdin.close()
                    ended |= what == "end"
                if len(output) > MAX_OUTPUT_BYTES:
                    return TOO_LONG, b""
            return FINISHED, bytes(output) + process.stdout.read()


def _written(pipe: IO[bytes], left: memoryview) -> memoryview:
    """Write a part of `left` and return the rest; nothing is left if nobody reads any more."""
    try:
        return left[os.write(pipe.fileno(), left[:CHUNK_BYTES]) :]
    except BlockingIOError:
        return left
    except BrokenPipeError:
        return left[:0]
