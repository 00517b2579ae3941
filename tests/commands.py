"""Starting the real program from tests: as one process or under torchrun, with a limit that also ends its children.

What only has to run and end is a fork of a process that has imported the program: imports are most of a short run's time. What
a test signals, or runs on several ranks, is started from nothing.
"""

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch.multiprocessing as multiprocessing

PROJECT = Path(__file__).parent.parent
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


def start(*words: str, ranks: int = 0, cwd: Path = PROJECT) -> subprocess.Popen[str]:
    """`megatron-fork WORDS`, in a process group of its own; under torchrun where `ranks` is given."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "megatron_fork", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=environment(),
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], *, limit: float = 240.0) -> tuple[int, str]:
    """(exit code, all output); whatever is left of the process group is killed."""
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"not finished after {limit} s:\n{output[-4000:]}") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def run(*words: str, ranks: int = 0, limit: float = 240.0) -> tuple[int, str]:
    """(exit code, all output) of `megatron-fork WORDS`."""
    if ranks:
        return finish(start(*words, ranks=ranks), limit=limit)
    with tempfile.NamedTemporaryFile(prefix="output") as output:
        process = multiprocessing.get_context("forkserver").Process(
            target=_program, args=(words, output.name, str(PROJECT), environment())
        )
        process.start()
        process.join(limit)
        ended = process.exitcode is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        text = Path(output.name).read_text()
    assert ended, f"not finished after {limit} s:\n{text[-4000:]}"
    return process.exitcode, text


def _program(words: Sequence[str], output: str, cwd: str, variables: dict[str, str]) -> None:
    """In a process of its own, with nothing of the parent's but what it has imported."""
    os.setsid()
    for descriptor, path in ((0, os.devnull), (1, output), (2, output)):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    sys.argv = ["megatron-fork", *words]
    runpy.run_module("megatron_fork", run_name="__main__")


def metrics_of(folder: Path, stage: str) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["stage"] == stage]


def without_times(records: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    return [
        {name: value for name, value in record.items() if not name.startswith("time/") and name != "tokens_per_second"}
        for record in records
    ]
