"""Seconds until a command has said what it has to say: help, a typo, the printed recipe, doctor, the first training step.

    python benchmarks/start_up.py --tree OLD_CHECKOUT --tree . --out benchmarks/results/start_up.json

Trees take turns, round by round, so that what else the machine does falls on both; the best of the rounds is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = "examples/quickstart.yaml"
COMMANDS = {
    "--help": ["--help"],
    "version": ["version"],
    "--version": ["--version"],
    "a typo": ["train", RECIPE, "selection.tokns=all"],
    "--print-config": ["train", RECIPE, "--print-config"],
    "doctor with a typo": ["doctor", RECIPE, "sead=1"],
    "doctor": ["doctor", RECIPE],
    "to the first step": ["train", RECIPE, "sft.steps=1", "train.steps=1"],
}
FIRST_STEP = "train 1/1"


def seconds(tree: Path, words: list[str]) -> tuple[float, int]:
    """Until the command ends, or has reported its first step; and its exit code, -1 where it was ended there."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        trains = words[0] == "train" and "train.steps=1" in words
        extra = [f"run.folder={folder}/run"] if trains else []
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "megatron_fork", *words, *extra],
            cwd=tree,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if trains and line.startswith(FIRST_STEP):
                taken = time.perf_counter() - started
                process.kill()
                process.wait()
                return taken, -1
        code = process.wait()
        return time.perf_counter() - started, code


def commit_of(tree: Path) -> str:
    found = subprocess.run(["git", "-C", str(tree), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, action="append", required=True, help="checkout to measure; repeatable")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    trees = [tree.resolve() for tree in chosen.tree]
    best: dict[str, dict[str, dict[str, float]]] = {commit_of(tree): {} for tree in trees}
    for _ in range(chosen.rounds):
        for name, words in COMMANDS.items():
            for tree in trees:
                taken, code = seconds(tree, words)
                known = best[commit_of(tree)].setdefault(name, {"seconds": taken, "exit_code": code})
                known["seconds"] = round(min(known["seconds"], taken), 2)
    result = {
        "command": "python benchmarks/start_up.py " + " ".join("--tree TREE" for _ in trees),
        "rounds": chosen.rounds,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "best_of_rounds": best,
    }
    text = json.dumps(result, indent=1)
    if chosen.out:
        chosen.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
