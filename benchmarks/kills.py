"""Kills of a run that does nothing but save: how many, and whether any checkpoint was lost.

    python benchmarks/kills.py --kills 30 --out benchmarks/results/kills.json

Each process resumes from the newest complete checkpoint, then saves step after step and says when a save is complete. After a
random number of saves it is killed with all its writers at a random moment of the next. A loss is a resume from an older step
than the last whose save had returned.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from megatron_fork.checkpoint import latest

PROJECT = Path(__file__).parents[1]
SAVER = PROJECT / "tests" / "checkpoint" / "saver.py"
SAVES_BEFORE = 4  # at most


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__},
        **measure(options.kills, options.seed),
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
