"""Does raising the temperature at forks help, and do four lenses mean the same tokens? On a finished run of the quickstart.

    python -m megatron_fork train examples/quickstart.yaml run.folder=runs/quickstart
    python benchmarks/quickstart_lenses.py runs/quickstart --work runs/lenses --results benchmarks/results

Everything runs through the command line, as a user would, for the warm start and for the trained model. What is in `--work` is
not drawn again. Writes quickstart_intervention.json and quickstart_lenses.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

MODELS = ("warm_start", "model")
# A walk has arrived at its target where these are its next tokens.
ANSWER = ["--answer", "need +0 done", "--answer-begins", "need"]
LENSES = [
    *ANSWER,
    "--lens",
    "entropy,mi,variance,pruning,anchors",
    "--limit",
    "64",
    "--token-budget",
    "1000000",
    "--anchor-responses",
    "16",
]


def analyze(*words: object) -> str:
    """The output of `megatron-fork analyze WORDS`."""
    command = [sys.executable, "-m", "megatron_fork", "analyze", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def record(file: Path) -> dict[str, Any]:
    """A record without what is of this machine and this moment."""
    found = json.loads(file.read_text())
    return {name: value for name, value in found.items() if name not in ("model", "provenance")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    interventions: dict[str, Any] = {}
    lenses: dict[str, Any] = {}
    for name in MODELS:
        model, drawn = f"{options.run}@{name}", options.work / f"intervention-{name}"
        print(analyze("intervene", model, "--samples", 4, "--paper", "--out", drawn), flush=True)
        plain, scored = drawn / "cells" / "high-1_low-1", options.work / f"plain-{name}.parquet"
        analyze("rescore", plain, model, "--out", scored)
        entropy = json.loads(analyze("entropy", scored, "--json"))["groups"]["all"]
        interventions[name] = {**record(drawn / "intervention.json"), "entropy": entropy}
        # The paper's threshold is its model's 80th percentile: the same of this model.
        own, threshold = options.work / f"intervention-p80-{name}", f"{entropy['percentiles']['80']:.3g}"
        line = ("--high", 1, "--low", 1, "--paper", "--threshold", threshold)
        print(analyze("intervene", model, "--samples", 4, *line, "--out", own), flush=True)
        interventions[f"{name}, its own 80th percentile"] = record(own / "intervention.json")
        for reading, words in (("authors_code", LENSES), ("responses", ["--lens", "entropy,mi", "--mi", "responses"])):
            out = options.work / f"lenses-{reading}-{name}"
            if not (out / "lenses.json").is_file():
                print(analyze("lenses", scored, model, *words, "--out", out), flush=True)
            lenses[f"{name}, mi {reading}"] = record(out / "lenses.json")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    for name, found in (("quickstart_intervention", interventions), ("quickstart_lenses", lenses)):
        (options.results / f"{name}.json").write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
