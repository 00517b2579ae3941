"""A signal that reaches one rank alone stops all of them, wherever they are, with the signal's exit code."""

import os
import signal
import time
from pathlib import Path

import pytest
from support.commands import QUICKSTART, TINY, finish, metrics_of, run, start, without_times

RANKS = 4
WORDS = (
    *(
        str(QUICKSTART),
        *TINY,
        "sft.steps=6",
        "train.steps=3",
        "train.prompts_per_step=8",
        "train.prompts_per_mini_batch=4",
    ),
    *("evaluation.every=1", "evaluation.samples=8", "data.held_out=32", "run.checkpoint_every=1"),
)


def process_of(rank: int, parent: int) -> int:
    """The process of a rank: the parent forks them in order."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return int(sorted(children, key=int)[rank])


def reached(phase: str, folder: Path, output: Path) -> bool:
    match phase:
        case "loading weights":
            return "run folder" in output.read_text()
        case "warm start":
            return (folder / "metrics.jsonl").is_file() and len(metrics_of(folder, "sft")) >= 1
        case "evaluation":
            return (folder / "warm_start" / "config.json").is_file()
        case "step":
            return (folder / "metrics.jsonl").is_file() and len(metrics_of(folder, "train")) >= 1
    raise ValueError(phase)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "rank", "saved"),
    [("loading weights", 3, False), ("warm start", 2, True), ("evaluation", 1, False), ("step", 3, True)],
)
def test_one_rank_is_asked_and_all_stop(tmp_path: Path, phase: str, rank: int, saved: bool) -> None:
    folder = tmp_path / "run"
    process = start("train", *WORDS, f"run.folder={folder}", ranks=RANKS)
    deadline = time.monotonic() + 120
    while not reached(phase, folder, Path(process._output.name)):
        assert process.poll() is None and time.monotonic() < deadline, Path(process._output.name).read_text()
        time.sleep(0.01)
    os.kill(process_of(rank, process.pid), signal.SIGUSR1)
    code, output = finish(process, limit=120)
    assert code == 75, output
    assert "Traceback" not in output, output
    assert not saved or "the state is saved" in output, output
    assert "is lost" not in output, output


@pytest.mark.slow
def test_a_run_stopped_by_one_rank_ends_as_the_whole(tmp_path: Path) -> None:
    folder, whole = tmp_path / "run", tmp_path / "whole"
    process = start("train", *WORDS, f"run.folder={folder}", ranks=2)
    while not reached("step", folder, Path(process._output.name)):
        assert process.poll() is None, Path(process._output.name).read_text()
        time.sleep(0.01)
    os.kill(process_of(1, process.pid), signal.SIGTERM)
    code, output = finish(process)
    assert code == 75 and "the state is saved" in output, output
    for each in (folder, whole):
        code, output = run("train", *WORDS, f"run.folder={each}", ranks=2)
        assert code == 0, output
    for stage in ("sft", "train", "evaluation"):
        assert without_times(metrics_of(folder, stage)) == without_times(metrics_of(whole, stage))
