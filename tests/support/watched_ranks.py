"""Ranks that are started by variables alone, as srun does: nobody ends the others when one of them is lost."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]


class Ranks:
    """Forks that have imported torch; each runs `work(rank)` as a rank of a gloo world, with its output in a file."""

    def __init__(self, folder: Path, ranks: int, work: Callable[..., None], *args: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.outputs = [folder / f"rank-{rank}.txt" for rank in range(ranks)]
        context = multiprocessing.get_context("forkserver")
        self.processes = [
            context.Process(target=_rank, args=(rank, ranks, port, str(output), work, args))
            for rank, output in enumerate(self.outputs)
        ]
        for process in self.processes:
            process.start()

    def wait_for(self, word: str, limit: float = 60.0, *, of: int | None = None) -> None:
        """Until every rank, or the one of that number, has printed the word."""
        deadline = time.monotonic() + limit
        outputs = self.outputs if of is None else [self.outputs[of]]
        while not all(output.is_file() and word in output.read_text() for output in outputs):
            assert time.monotonic() < deadline, [output.read_text() for output in self.outputs if output.is_file()]
            time.sleep(0.01)

    def ended(self, limit: float, *, together: signal.Signals | None = None) -> list[tuple[int, str]]:
        """(exit code, output) of every rank; what is left after `limit` seconds is killed, and has no code: -9.

        `together`: the signal that the others get as soon as one has ended, as from `srun --kill-on-bad-exit`.
        """
        deadline = time.monotonic() + limit
        if together is not None:
            multiprocessing.connection.wait([process.sentinel for process in self.processes], limit)
            for process in self.processes:
                if process.is_alive():
                    os.kill(process.pid, together)
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in self.processes:
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
            process.join()
        return [
            (process.exitcode, output.read_text()) for process, output in zip(self.processes, self.outputs, strict=True)
        ]


def _rank(rank: int, ranks: int, port: int, output: str, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    variables = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()}, OMP_NUM_THREADS="1")
    work(rank, *args)


class ProgramRanks:
    """`megatron-fork WORDS` on several ranks, with a process and an output each, and nobody above them."""

    def __init__(self, folder: Path, ranks: int, *words: str, python_path: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.outputs = [folder / f"rank-{rank}.txt" for rank in range(ranks)]
        self.processes = []
        for rank, output in enumerate(self.outputs):
            variables = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_PORT": port}
            with output.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "megatron_fork", *words],
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env={
                            **os.environ,
                            **{name: str(value) for name, value in variables.items()},
                            "MASTER_ADDR": "127.0.0.1",
                            "OMP_NUM_THREADS": "1",
                            "PYTHONPATH": f"{PROJECT}:{python_path}",
                        },
                        start_new_session=True,
                    )
                )

    def ended(self, limit: float) -> list[tuple[int, str]]:
        """(exit code, output) of every rank; what is left after `limit` seconds is killed, with its children."""
        deadline = time.monotonic() + limit
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return [
            (each.returncode, output.read_text()) for each, output in zip(self.processes, self.outputs, strict=True)
        ]
