"""Starting the real program from tests: as one process or under torchrun, with a limit that also ends its children.

Programs are forks of a process that has imported them: imports are most of a short run's time. What is about starting itself,
such as torchrun, starts from nothing.
"""

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch.multiprocessing as multiprocessing

from megatron_fork.traces import open_traces

PROJECT = Path(__file__).parents[2]
QUICKSTART = PROJECT / "examples" / "quickstart.yaml"
# The quickstart in seconds. The entropy bonus gives every update a gradient, also where no group has signal.
TINY = (
    "sft.steps=3",
    "train.steps=4",
    "train.prompts_per_step=4",
    "train.prompts_per_mini_batch=2",
    "rollout.samples=4",
    "rollout.dynamic_sampling=false",
    "objective.entropy_coef=0.01",
    "data.held_out=8",
    "evaluation.samples=2",
    "evaluation.every=0",
)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), "WANDB_MODE": "offline"}


class Program:
    """`megatron-fork WORDS` as a fork of a process that has imported it, with its output in a file.

    With `ranks`, as many under a parent that waits for them as torchrun would: its exit code is that of the first to fail, and
    whoever fails ends the others. Session and process group are its own.
    """

    def __init__(self, words: Sequence[str], ranks: int, cwd: Path) -> None:
        self._output = tempfile.NamedTemporaryFile(prefix="output")  # noqa: SIM115
        variables = [environment()] if ranks == 0 else _of_ranks(ranks)
        context = multiprocessing.get_context("forkserver")
        self._process = context.Process(target=_program, args=(words, self._output.name, str(cwd), variables))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def finish(self, limit: float) -> tuple[int, str]:
        self._process.join(limit)
        ended = self._process.exitcode is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.join()
        output = Path(self._output.name).read_text()
        if not ended:
            raise AssertionError(f"not finished after {limit} s:\n{output[-4000:]}")
        return self._process.exitcode, output


class Launched(Program):
    """`megatron-fork WORDS` under the real torchrun, started from nothing."""

    def __init__(self, words: Sequence[str], ranks: int, cwd: Path) -> None:
        self._output = tempfile.NamedTemporaryFile(prefix="output")  # noqa: SIM115
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        self._popen = subprocess.Popen(
            [sys.executable, *launcher, "-m", "megatron_fork", *words],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=environment(),
            start_new_session=True,
        )
        self.pid = self._popen.pid

    def poll(self) -> int | None:
        return self._popen.poll()

    def finish(self, limit: float) -> tuple[int, str]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(limit)
        ended = self._popen.poll()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        output = Path(self._output.name).read_text()
        if ended is None:
            raise AssertionError(f"not finished after {limit} s:\n{output[-4000:]}")
        return ended, output


def start(*words: str, ranks: int = 0, cwd: Path = PROJECT) -> Program:
    """`megatron-fork WORDS`, as one process or as several ranks; `finish` it."""
    return Program(words, ranks, cwd)


def finish(process: Program, *, limit: float = 240.0) -> tuple[int, str]:
    """(exit code, all output); whatever is left of the process group is killed."""
    return process.finish(limit)


def run(*words: str, ranks: int = 0, torchrun: bool = False, limit: float = 240.0) -> tuple[int, str]:
    """(exit code, all output) of `megatron-fork WORDS`."""
    return finish(Launched(words, ranks, PROJECT) if torchrun else start(*words, ranks=ranks), limit=limit)


def _of_ranks(ranks: int) -> list[dict[str, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    return [{**environment(), **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _program(words: Sequence[str], output: str, cwd: str, variables: Sequence[dict[str, str]]) -> None:
    """In a process of its own, with nothing of the parent's but what it has imported."""
    os.setsid()
    for descriptor, path in ((0, os.devnull), (1, output), (2, output)):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(cwd)
    if len(variables) == 1:
        _become(words, variables[0])
        return
    children = {}
    for each in variables:
        child = os.fork()
        if child == 0:
            try:
                _become(words, each)
            except SystemExit as end:
                os._exit(end.code if isinstance(end.code, int) else bool(end.code))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children[child] = each["RANK"]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the ranks have it too
    failed = 0
    while children:
        child, status = os.wait()
        del children[child]
        if (code := os.waitstatus_to_exitcode(status)) and not failed:
            failed = abs(code)
            for other in children:
                os.kill(other, signal.SIGTERM)
    sys.exit(failed)


def _become(words: Sequence[str], variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["megatron-fork", *words]
    runpy.run_module("megatron_fork", run_name="__main__")


def metrics_of(folder: Path, stage: str) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["stage"] == stage]


def trace_rows(path: Path) -> list[dict]:
    """The rows of a trace file, or of those in a folder."""
    return [row for part in open_traces(path).parts() for row in part.table.to_pylist()]


def without_times(records: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    return [
        {
            name: value
            for name, value in record.items()
            if not name.startswith(("time/", "memory/")) and name != "tokens_per_second"
        }
        for record in records
    ]
