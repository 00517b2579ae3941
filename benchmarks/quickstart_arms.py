"""Does the quickstart learn, and which tokens carry it? Held-out pass rate before and after, by arm and seed.

    python benchmarks/quickstart_arms.py --seeds 0 1 2 --out benchmarks/results/quickstart_arms.json

Each seed has one warm start, from which every arm sets out: top 20 % of tokens by entropy, all tokens, bottom 80 %, and a
random 20 %. With `--warm-starts 300 500 800` it also asks how greedy accuracy depends on the length of the warm start.
Everything runs through the command line, as a user would.
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

RECIPE = Path(__file__).parent.parent / "examples" / "quickstart.yaml"
ARMS = {
    "top 20 %": ["selection.tokens=top", "selection.ratio=0.2"],
    "bottom 80 %": ["selection.tokens=bottom", "selection.ratio=0.8"],
    "all": ["selection.tokens=all"],
    "random 20 %": ["selection.tokens=random", "selection.ratio=0.2"],
}


def train(folder: Path, *overrides: str) -> dict[str, float]:
    """One run of the quickstart recipe; its summary."""
    words = [f"run.folder={folder}", "evaluation.every=0", *overrides]
    command = [sys.executable, "-m", "megatron_fork", "train", str(RECIPE), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "summary.json").read_text())


def from_warm_start(folder: Path) -> list[str]:
    return ["sft.steps=0", "model.hf_config=null", f"model.path={folder / 'warm_start'}"]


def arms(seeds: list[int], scratch: Path) -> list[dict[str, float | str]]:
    rows: list[dict[str, float | str]] = []
    for seed in seeds:
        first = scratch / f"seed-{seed}"
        for index, (arm, words) in enumerate(ARMS.items()):
            folder = first if index == 0 else scratch / f"seed-{seed}-{index}"
            start = [] if index == 0 else from_warm_start(first)
            rows.append({"arm": arm, **train(folder, f"seed={seed}", *words, *start)})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def warm_starts(lengths: list[int], scratch: Path) -> list[dict[str, float | str]]:
    rows: list[dict[str, float | str]] = []
    for steps in lengths:
        rows.append({"sft_steps": steps, **train(scratch / f"sft-{steps}", f"sft.steps={steps}")})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--warm-starts", type=int, nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    started = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        result = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "arms": arms(options.seeds, Path(scratch)),
            "warm_starts": warm_starts(options.warm_starts, Path(scratch)),
        }
    result["wall_seconds"] = round(time.time() - started, 1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
