"""The later methods of docs/semantics.md beside the paper's rule on the quickstart task, all from the same warm start.

    python benchmarks/later_methods.py --seeds 0 --out benchmarks/results/later_methods.json

Each row is a run of the command line. Rows that the result file has already are not run again, so that seeds and arms can be
added later; `--scratch` keeps the warm starts for that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = Path(__file__).parent.parent / "examples" / "quickstart.yaml"
ALL = "selection.tokens=all"


def _band(low: float, high: float) -> list[str]:
    return [f"selection.surprisal_band.low={low}", f"selection.surprisal_band.high={high}"]


ARMS = {
    "top 20 % (the paper's rule)": [],
    "all tokens": [ALL],
    "STAPO": [ALL, "selection.weights=[stapo]"],
    "surprisal band 0.5 to 2": [ALL, "selection.weights=[surprisal_band]", *_band(0.5, 2.0)],
    "M2PO": [ALL, "selection.weights=[m2po]", "objective.clip_low=0.99", "objective.clip_high=100.0"],
    "soft entropy weights": [ALL, "selection.weights=[soft_entropy]"],
    "positive x high entropy": [ALL, "selection.weights=[quadrants]", "selection.quadrants.negative_high=0.0"],
    "NAT, random prefixes": [ALL, "selection.weights=[nat]"],
    "negative x high entropy": [ALL, "selection.weights=[quadrants]", "selection.quadrants.positive_high=0.0"],
    "surprisal band 0.1 to 3": [ALL, "selection.weights=[surprisal_band]", *_band(0.1, 3.0)],
    "random 20 %": ["selection.tokens=random"],
}
_FROM_STEPS = ("selection/", "time/update", "time/statistics", "objective/clipped", "gradient_norm")


def train(folder: Path, *overrides: str) -> None:
    words = [str(RECIPE), f"run.folder={folder}", "run.checkpoint_every=0", "evaluation.every=0", *overrides]
    subprocess.run([sys.executable, "-m", "megatron_fork", "train", *words], check=True, stdout=subprocess.DEVNULL)


def row_of(folder: Path) -> dict[str, float]:
    """The summary of a run, and the means over its steps of what shows what a method did."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line.get("stage") == "train"]
    names = [name for name in steps[-1] if name.startswith(_FROM_STEPS)]
    known = [name for name in names if all(step.get(name) is not None for step in steps)]  # no cut: no threshold
    summary = json.loads((folder / "summary.json").read_text())
    del summary["provenance"]
    return {**summary, **{name: sum(step[name] for step in steps) / len(steps) for name in known}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--scratch", type=Path, help="folder for the runs; one that is removed at the end by default")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    with tempfile.TemporaryDirectory(prefix="later-methods") as own:
        scratch = options.scratch or Path(own)
        for seed in options.seeds:
            warm = scratch / f"warm-{seed}"
            if not (warm / "warm_start").exists():
                train(warm, f"seed={seed}", "train.steps=0")
            start = ["sft.steps=0", "model.hf_config=null", f"model.path={warm / 'warm_start'}", f"seed={seed}"]
            for arm in options.arms:
                if any((row["arm"], row["seed"]) == (arm, seed) for row in rows):
                    continue
                folder = scratch / f"{seed}-{list(ARMS).index(arm)}"
                if not (folder / "summary.json").exists():
                    train(folder, *start, *ARMS[arm])
                rows.append({"arm": arm, "seed": seed, **row_of(folder)})
                print(json.dumps(rows[-1]), flush=True)
                record = {
                    "command": "python benchmarks/later_methods.py --seeds "
                    + " ".join(map(str, sorted({row["seed"] for row in rows}))),
                    "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
                    "rows": rows,
                }
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
