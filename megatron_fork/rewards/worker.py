"""The worker process: `python -m megatron_fork.rewards.worker KIND TIMEOUT_SECONDS MEMORY_BYTES CONFINED`.

Standard input is a socket to the pool. The worker sends ["ready", what confines it] once, or ["refused", why, what to do].
Then it answers each `[index, response, answer]` with `[index, value, reason, failure]`, and ends when the pool closes its end
or the pool's process dies.
"""

from __future__ import annotations

import signal
import socket
import sys

from megatron_fork.rewards.code import permit_programs
from megatron_fork.rewards.confinement import confine, die_with_parent, limit
from megatron_fork.rewards.custom import CustomVerifier
from megatron_fork.rewards.frames import encode, received
from megatron_fork.rewards.process import PATIENCE_WITH_MACHINE
from megatron_fork.rewards.score import RewardError
from megatron_fork.rewards.verifiers import RUNS_PROGRAMS, find_verifier, score

# Each kind of expression makes the parser load modules and fill caches, which takes a second in all.
WARM_UP = (
    (r"\boxed{x}", "y"),
    (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{\sqrt{2}}{2}"),
    (r"\boxed{1 + 2x + x^2}", "(x+1)^2"),
    (r"\boxed{2\sin x\cos x}", r"\sin 2x"),
    (r"\boxed{y = 2x + 1}", "y - 2x = 1"),
)


def serve(channel: socket.socket, kind: str, timeout_seconds: float, holds: list[str]) -> None:
    # Importing a parser and building its tables is a cost of starting, and must not count against the first job.
    # An error here ends the process: a verifier that cannot start would otherwise score 0 forever.
    verifier = find_verifier(kind)
    if not isinstance(verifier, CustomVerifier):
        for response, answer in WARM_UP:
            verifier(response, answer)
    channel.sendall(encode(["ready", holds]))
    for index, response, answer in received(channel):
        # The pool kills a late worker, and the kernel kills one whose pool is gone. If neither does, the default action of
        # these alarms, one of CPU time and one of the clock, ends the process.
        signal.setitimer(signal.ITIMER_PROF, 2 * timeout_seconds)
        signal.setitimer(signal.ITIMER_REAL, (PATIENCE_WITH_MACHINE + 1) * timeout_seconds)
        result = score(response, answer, kind=kind)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        channel.sendall(encode([index, result.value, result.reason, result.failure]))


def main(kind: str, timeout_seconds: str, memory_bytes: str, confined: str) -> None:
    limit(int(memory_bytes))
    die_with_parent()
    channel = socket.socket(fileno=0)
    holds = []
    try:
        if kind in RUNS_PROGRAMS:
            # This forks the runner while this process may still fork, and before it holds any answer.
            holds += permit_programs()
        if confined == "confined":
            holds += confine()
    except RewardError as error:
        channel.sendall(encode(["refused", error.message, error.hint]))
        raise SystemExit(1) from None
    try:
        serve(channel, kind, float(timeout_seconds), holds)
    except ConnectionError:
        return  # The pool closed its end while an answer was on the way.


if __name__ == "__main__":
    main(*sys.argv[1:])
