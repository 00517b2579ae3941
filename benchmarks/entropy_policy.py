"""Entropy of the current or of the old policy: what a step costs, and how far the two selections drift apart.

    python benchmarks/entropy_policy.py --out benchmarks/results/entropy_policy.json

The quickstart task from one warm start, 16 mini-batches a rollout batch. Each choice is a run of the command line; overlap is
the share of the selected tokens that the policy before the rollout batch's updates would have selected too, by mini-batch.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

from systems import run

MINI_BATCHES = 16


def overlaps(folder: Path) -> list[float]:
    """Mean over steps, one value a mini-batch."""
    lines = [json.loads(line) for line in (folder / "updates.jsonl").read_text().splitlines()]
    by_update = [[line["selection/overlap_old"] for line in lines if line["update"] == n] for n in range(MINI_BATCHES)]
    return [sum(values) / len(values) for values in by_update if values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--groups", type=int, default=2, help="of 16 responses in a mini-batch")
    parser.add_argument("--override", nargs="*", default=[], help="dotted overrides of every run")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="entropy_policy") as scratch:
        warm = Path(scratch, "warm")
        run("quickstart.yaml", warm, "train.steps=0", *arguments.override)
        words = [
            *("sft.steps=0", "model.hf_config=null", f"model.path={warm / 'warm_start'}"),
            *(f"train.steps={arguments.steps}", f"train.prompts_per_mini_batch={arguments.groups}"),
            f"train.prompts_per_step={arguments.groups * MINI_BATCHES}",
            *arguments.override,
        ]
        for choice in ("current", "old"):
            folder = Path(scratch, choice)
            row = run("quickstart.yaml", folder, *words, f"selection.entropy_policy={choice}")
            rows.append({"entropy_policy": choice, **row, "overlap_by_mini_batch": overlaps(folder)})
            print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        command = " ".join(["python", "benchmarks/entropy_policy.py", *sys.argv[1:]])
        record = {"command": command, "processor": platform.processor() or platform.machine(), "rows": rows}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
