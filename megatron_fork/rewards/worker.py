"""The worker process: `python -m megatron_fork.rewards.worker KIND TIMEOUT_SECONDS MEMORY_BYTES`.

Standard input is a socket to the pool. The worker says "ready" once, then answers each `[index, response, answer]` with
`[index, value, reason]`, and ends when the pool closes its end, which the kernel does too when the pool's process dies.
"""

from __future__ import annotations

import logging
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

from megatron_fork.rewards.frames import encode, pop_frame
from megatron_fork.rewards.verifiers import VERIFIERS, score

RECURSION_LIMIT = 3000
CHUNK_BYTES = 1 << 16


def serve(channel: socket.socket, kind: str, timeout_seconds: float) -> None:
    # Importing a parser and building its tables is the cost of starting, and must not count against the first job.
    # What goes wrong here ends the process: a verifier that cannot even start would score 0 for ever.
    VERIFIERS[kind](r"\boxed{x}", "y")
    channel.sendall(encode("ready"))
    for index, response, answer in received(channel):
        # The pool kills a late worker. If the pool is gone, nobody does: this alarm's default action ends the process.
        signal.setitimer(signal.ITIMER_REAL, 2 * timeout_seconds)
        result = score(response, answer, kind=kind)
        signal.setitimer(signal.ITIMER_REAL, 0)
        channel.sendall(encode([index, result.value, result.reason]))


def received(channel: socket.socket) -> Iterator[Any]:
    buffer = bytearray()
    while chunk := channel.recv(CHUNK_BYTES):
        buffer += chunk
        message = pop_frame(buffer)
        if message is not None:
            yield message


def restrict(memory_bytes: int) -> None:
    """Bound memory and recursion, and leave every signal of the job scheduler or the keyboard to the parent."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setrecursionlimit(RECURSION_LIMIT)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)


def main(kind: str, timeout_seconds: str, memory_bytes: str) -> None:
    restrict(int(memory_bytes))
    try:
        serve(socket.socket(fileno=0), kind, float(timeout_seconds))
    except ConnectionError:
        return  # The pool closed its end while an answer was on the way.


if __name__ == "__main__":
    main(*sys.argv[1:])
