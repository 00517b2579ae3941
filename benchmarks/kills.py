"""Kills of a run that does nothing but save: how many, and whether any checkpoint was lost.

    python benchmarks/kills.py --kills 30 --out benchmarks/results/kills.json

Each process resumes from the newest complete checkpoint, then saves step after step and says when a save is complete. After a
random number of saves it is killed with all its writers at a random moment of the next. A loss is a resume from an older step
than the last whose save had returned.

    python benchmarks/kills.py --kills 0 --runs 10 --out benchmarks/results/kills_of_runs.json

Whole runs of the quickstart, made small, are killed in the warm start, while a step is drawn, and between two updates, as often
each, and started again to their end. Then metrics.jsonl has each step once, and the weights are those of a run that nothing
interrupted, bit for bit.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from megatron_fork.checkpoint import latest

PROJECT = Path(__file__).parents[1]
SAVER = PROJECT / "tests" / "checkpoint" / "saver.py"
SAVES_BEFORE = 4  # at most
SMALL = (
    *("sft.steps=20", "train.steps=4", "train.prompts_per_step=4", "train.prompts_per_mini_batch=1"),
    *("rollout.samples=4", "rollout.dynamic_sampling=false", "objective.entropy_coef=0.01"),
    *("data.held_out=8", "evaluation.samples=2", "evaluation.every=0", "run.checkpoint_every=1"),
)
STEPS = {"sft": 20, "train": 4}
UPDATES = STEPS["train"] * 4
PHASES = ("warm start", "rollout", "between two updates")


def one_life(folder: Path, generator: random.Random) -> tuple[int, int]:
    """(step that it resumed from, last step whose save it reported)."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests' / 'distributed'}",
    }
    process = subprocess.Popen(
        [sys.executable, str(SAVER), str(folder), "1000000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    resumed = int(process.stdout.readline().split()[1])
    last, began = resumed, time.monotonic()
    for _ in range(generator.randrange(SAVES_BEFORE)):
        last = int(process.stdout.readline().split()[1])
    of_one = (time.monotonic() - began) / max(1, last - resumed)
    time.sleep(generator.uniform(0.0, max(0.5, 1.2 * of_one)))
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    reported = [int(line.split()[1]) for line in output.splitlines() if line.startswith("saved")]
    return resumed, max([last, *reported])


def measure(kills: int, seed: int) -> dict[str, Any]:
    generator = random.Random(seed)
    lives, losses, refused, unfinished = [], 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reported = 0
        for number in range(kills):
            resumed, last = one_life(folder, generator)
            losses += resumed < reported
            unfinished += bool(list(folder.glob("*.partial")))
            saved = latest(folder)
            refused += len(saved.refused) if saved else 0
            losses += (saved.progress["step"] if saved else 0) < last
            reported = last
            lives.append([resumed, last])
            print(f"kill {number + 1}: resumed from {resumed}, saved up to {last}, losses {losses}", flush=True)
    return {
        "kills": kills,
        "saves": reported,
        "kills_that_left_an_unfinished_folder": unfinished,
        "refused": refused,
        "losses": losses,
        "lives": lives,
    }


def dying_run(phase: str, entry: int, seconds: float, words: list[str]) -> None:
    """`megatron-fork WORDS`, killed so many seconds after it has entered a phase for the `entry`-th time."""
    from megatron_fork import run as rooms
    from megatron_fork.policy import Policy
    from megatron_fork.run import setup

    place, name = {
        "warm start": (setup, "fine_tune"),
        "rollout": (rooms, "collect"),
        "between two updates": (Policy, "update"),
    }[phase]
    act, entered = getattr(place, name), iter(range(1, 1 << 30))

    def die() -> None:
        os.killpg(0, signal.SIGKILL)

    def counted(*given: Any, **named: Any) -> Any:
        is_the_one = next(entered) == entry
        if is_the_one and phase != "between two updates":
            threading.Timer(seconds, die).start()
        result = act(*given, **named)
        if is_the_one and phase == "between two updates":
            die()
        return result

    setattr(place, name, counted)
    run(words)


def run(words: list[str]) -> None:
    """`megatron-fork WORDS` in this process."""
    from megatron_fork.cli import main as command_line

    sys.argv = ["megatron-fork", *words]
    command_line()


def run_to_the_end(words: list[str], dying: tuple[str, int, float] | None = None) -> int:
    """Exit code of a run; negative where a signal ended it.

    In a fork of this process, which has imported what a run needs and computes nothing itself: imports would take most of the
    time.
    """
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    code = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        dying_run(*dying, words) if dying else run(words)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    finally:
        os._exit(code)


def what_is_left(folder: Path) -> tuple[bytes, dict[str, list[int]]]:
    """The final weights, and the steps in metrics.jsonl by stage."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = {stage: [record["step"] for record in records if record["stage"] == stage] for stage in STEPS}
    return (folder / "model" / "model.safetensors").read_bytes(), steps


def measure_runs(kills: int, seed: int) -> dict[str, Any]:
    """`kills` in each phase."""
    generator = random.Random(seed)
    expected_steps = {stage: list(range(1, last + 1)) for stage, last in STEPS.items()}
    found: dict[str, Any] = {phase: {"killed": 0, "as_if_uninterrupted": 0} for phase in PHASES}
    recipe = str(PROJECT / "examples" / "quickstart.yaml")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    for module in ("megatron_fork.cli.commands", "megatron_fork.train"):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name, "whole")
        assert run_to_the_end(["train", recipe, *SMALL, f"run.folder={whole}"]) == 0
        weights, steps = what_is_left(whole)
        assert steps == expected_steps
        for number, phase in enumerate([phase for phase in PHASES for _ in range(kills)]):
            folder = Path(name, f"killed-{number}")
            entry = {
                "warm start": 1,
                "rollout": generator.randint(1, STEPS["train"]),
                "between two updates": STEPS["sft"] + generator.randint(1, UPDATES),
            }[phase]
            words = ["train", recipe, *SMALL, f"run.folder={folder}"]
            code = run_to_the_end(words, (phase, entry, generator.uniform(0.0, 0.5)))
            found[phase]["killed"] += code == -signal.SIGKILL
            went_on = run_to_the_end(["train", str(folder / "resolved.yaml"), f"run.folder={folder}"])
            same = went_on == 0 and what_is_left(folder) == (weights, steps)
            found[phase]["as_if_uninterrupted"] += same
            print(f"{phase}, entry {entry}: exit {code}, then {went_on}, as if uninterrupted: {same}", flush=True)
    return {"kills_in_each_phase": kills, "settings": SMALL, "phases": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--runs", type=int, default=0, help="whole runs killed in each phase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__},
        **(measure(options.kills, options.seed) if options.kills else {}),
        **(measure_runs(options.runs, options.seed) if options.runs else {}),
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
