"""Processor seconds of the quickstart's two parts under several states of the code, which take turns.

    git worktree add --detach ../before COMMIT
    OMP_NUM_THREADS=1 python benchmarks/before_and_after.py --tree before=../before now=. --rounds 4

Each run is a process of its own that imports the package of its tree. `ratios` are to the first tree of the same round; a run's
processor time counts what its machine does for others only as far as they share caches. Writes benchmarks/results/
before_and_after.json; rounds that are in it of the same commits stay, so that the machine need not be quiet for long at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from head.measure import machine

RESULTS = Path(__file__).parent / "results" / "before_and_after.json"
COMMON = ["evaluation.samples=1", "evaluation.every=0"]
PARTS = {
    "warm start": ["sft.steps=150", "train.steps=1", *COMMON],
    "reinforcement learning": ["sft.steps=20", "train.steps=4", "rollout.dynamic_sampling=false", *COMMON],
}


def commit_of(tree: Path) -> str:
    """The last commit that changed the tree's package, marked if there are changes since."""
    git = ["git", "-C", str(tree)]
    found = subprocess.run(
        [*git, "log", "-1", "--format=%h", "--", "megatron_fork"], capture_output=True, text=True, check=True
    )
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "megatron_fork"], check=False).returncode
    return found.stdout.strip() + "+" * bool(changed)


def seconds(tree: Path, words: list[str]) -> float:
    """Of all the processors, user and system, of one run with the quickstart of `tree`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        recipe = tree / "examples" / "quickstart.yaml"
        command = [sys.executable, "-m", "megatron_fork", "train", str(recipe), f"run.folder={folder}/run", *words]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        subprocess.run(command, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    trees = {name: Path(folder).resolve() for name, _, folder in (each.partition("=") for each in options.tree)}
    record: dict[str, Any] = {
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "machine": machine("cpu"),
        "commits": {name: commit_of(tree) for name, tree in trees.items()},
        "rounds": {},
    }
    if options.out.is_file():
        earlier = json.loads(options.out.read_text())
        if earlier["commits"] == record["commits"]:
            record["rounds"] = earlier["rounds"]
    for part in options.part:
        rounds = record["rounds"].setdefault(part, [])
        for _ in range(options.rounds):
            order = list(trees) if len(rounds) % 2 == 0 else list(trees)[::-1]
            rounds.append({name: round(seconds(trees[name], PARTS[part]), 2) for name in order})
            print(part, rounds[-1], flush=True)
            first = next(iter(trees))
            record["ratios"] = {
                each: {name: statistics.median(of[name] / of[first] for of in runs) for name in trees}
                for each, runs in record["rounds"].items()
            }
            options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
