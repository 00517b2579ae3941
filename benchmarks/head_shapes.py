"""The LM head at several shapes in one process: seconds against floor and peers in turns, then each contender's peak.

    python benchmarks/head_shapes.py --device cuda --width 4096 --tokens 8192 32768 --out benchmarks/results/head_8b_h200.json

What benchmarks/lm_head.py measures in processes of their own, for one GPU, where the allocator tells each contender's peak and
a start takes longer than the measurement. Unfused peers stay out: they hold all logits. The file is whole after every shape.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import json
import shlex
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from head import tables
from head.measure import machine
from head.problem import DTYPES, Shape
from head.processes import joined
from head.runs import SUITES, Outcome, peaks_on_rank, times_on_rank
from rich.console import Console


def contenders() -> list[str]:
    """Floor, this package, and every peer that is fused."""
    fused = ("floor", "ours", "trl-fused", "verl-fused", "liger")
    return [contender.key for contender in SUITES["head"].contenders() if contender.key.startswith(fused)]


def measured(shape: Shape, keys: list[str], rounds: int) -> dict[str, Outcome]:
    outcomes = times_on_rank(0, "head", shape, keys, rounds)
    for key, outcome in outcomes.items():
        if not outcome.rounds or key == "floor":
            continue
        _free()
        peaks = peaks_on_rank(0, "head", shape, key)
        if isinstance(peaks, str):
            outcome.unavailable = peaks
        else:
            outcome.peaks_mebibytes = peaks
    _free()
    return outcomes


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--share", type=float, nargs="+", default=[0.2, 1.0], help="of the tokens that count")
    parser.add_argument("--contenders", nargs="+", choices=contenders(), default=contenders())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    # Megatron's import warns of what this does not use.
    warnings.simplefilter("ignore")
    record: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/head_shapes.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(options.device),
        "results": [],
    }
    console = Console()
    with tempfile.TemporaryDirectory(prefix="head") as folder, joined(0, 1, options.device, folder):
        for tokens, share in itertools.product(options.tokens, options.share):
            shape = Shape(tokens, options.width, options.vocabulary, options.dtype, share, 1, options.device)
            outcomes = measured(shape, options.contenders, options.rounds)
            tables.show_times(console, shape, outcomes)
            tables.show_peaks(console, shape, outcomes)
            record["results"].append(tables.as_data(shape, outcomes))
            if options.out:
                options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
