"""Every system and ablation of `examples/` on the quickstart task, from the same warm start.

    python benchmarks/systems.py --seeds 0 --out benchmarks/results/systems.json

Each row is a run of the command line on a recipe as it stands; only `sft` is replaced by the warm start that all share.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"
RECIPES = [
    "quickstart.yaml",
    "systems/ppo.yaml",
    "systems/grpo.yaml",
    "systems/dapo.yaml",
    "systems/dapo_top20.yaml",
    "ablations/ratio10.yaml",
    "ablations/ratio50.yaml",
    "ablations/all.yaml",
    "ablations/random20.yaml",
    "ablations/bottom80.yaml",
]
_KEPT = (
    "selection/fraction",
    "selection/overlap_old",
    "time/step",
    "time/rollout",
    "time/statistics",
    "time/update",
    "time/critic",
    "tokens_per_second",
)


def run(recipe: str, folder: Path, *overrides: str) -> dict[str, float | str]:
    """One run; its summary, and the means over steps of a few metrics."""
    words = [str(EXAMPLES / recipe), f"run.folder={folder}", "evaluation.every=0", *overrides]
    subprocess.run([sys.executable, "-m", "megatron_fork", "train", *words], check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line.get("stage") == "train"]
    means = {
        name: sum(step[name] for step in steps) / len(steps)
        for name in _KEPT
        if steps and all(name in s for s in steps)
    }
    return {"recipe": recipe, **json.loads((folder / "summary.json").read_text()), **means}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--override", nargs="*", default=[], help="dotted overrides of every run")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="systems") as scratch:
        for seed in arguments.seeds:
            warm = Path(scratch, f"warm-{seed}")
            run("quickstart.yaml", warm, f"seed={seed}", "train.steps=0")
            start = ["sft.steps=0", "model.hf_config=null", f"model.path={warm / 'warm_start'}", f"seed={seed}"]
            for place, recipe in enumerate(arguments.recipes):
                rows.append(run(recipe, Path(scratch, f"{seed}-{place}"), *start, *arguments.override))
                print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        command = " ".join(["python", "benchmarks/systems.py", *sys.argv[1:]])
        record = {"command": command, "processor": platform.processor() or platform.machine(), "rows": rows}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
