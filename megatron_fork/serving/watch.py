"""Starts a rollout server and ends with it, with every process that it has started.

    python -m megatron_fork.serving.watch vllm|sglang MODEL_FOLDER --port PORT [--host HOST] [OPTION ...]

The words are those of `megatron_fork.serving.start`. An engine is several processes, of which one may be killed while the
others keep the GPU and the port; a job that only waits for the first would wait for ever. Exit codes: 1 if the server ended
before it was healthy, 3 if it had been healthy before it ended or fell silent, 0 if this process was told to end.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

# An answer to /health takes a moment even under load; in a sync of weights it may take some seconds.
SILENCE_SECONDS = 120.0
_GRACE_SECONDS = 10.0
_PERIOD_SECONDS = 1.0
NEVER_HEALTHY, HEALTHY_BEFORE = 1, 3


class Told(Exception):
    """A signal told this process to end."""


def is_healthy(host: str, port: int) -> bool:
    """Whether the server says so within five seconds."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def watch(command: Sequence[str], host: str, port: int, silence_seconds: float = SILENCE_SECONDS) -> int:
    """Run `command` until it ends, or has been silent for so long after it was healthy; returns this process's exit code."""
    server = subprocess.Popen(command, start_new_session=True)
    answered: float | None = None
    try:
        while server.poll() is None:
            now = time.monotonic()
            if is_healthy(host, port):
                answered = time.monotonic()
            elif answered is not None and now - answered > silence_seconds:
                print(f"the server has been silent for {now - answered:.0f} seconds: it is killed", flush=True)
                break
            time.sleep(_PERIOD_SECONDS)
    except Told:
        _signal(server.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            server.wait(_GRACE_SECONDS)
        return 0
    finally:
        _signal(server.pid, signal.SIGKILL)
        server.wait()
    print(f"the server has ended with exit code {server.returncode}", flush=True)
    return NEVER_HEALTHY if answered is None else HEALTHY_BEFORE


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _tell(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Told


def main() -> None:
    """Watch the server that these words start."""
    parser = argparse.ArgumentParser(prog="python -m megatron_fork.serving.watch", allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    asked, _ = parser.parse_known_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _tell)
    sys.exit(watch([sys.executable, "-m", "megatron_fork.serving.start", *sys.argv[1:]], asked.host, asked.port))


if __name__ == "__main__":
    main()
