"""The LM head against its floor and its peers: log-prob and entropy of every token, gradients for those that count.

    pip install --no-deps -r benchmarks/requirements.txt
    python benchmarks/lm_head.py --out benchmarks/results/lm_head_cpu.json
    python benchmarks/lm_head.py --device cuda --out benchmarks/results/lm_head_h200.json

head        seconds: contenders take turns in one process a rank, `--rounds` times; ratios are to the floor of the same round
memory      peak over the inputs, each contender in processes of its own
statistics  the same where the logits are given and every token counts
growth      seconds and peak of this package by the number of tokens
predicted   what the heads of Qwen3 should cost on a GPU: counted, nothing is run

Every contender is first compared with plain torch in float64 at a small shape. A section of `--out` that is not run stays.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from head import predicted, tables
from head.measure import machine
from head.problem import DTYPES, Shape
from head.runs import SUITES, peaks, times
from rich.console import Console

SECTIONS = ("head", "memory", "statistics", "growth", "predicted")
# Tokens, widths and dtypes: a size that a CPU can bear, and the heads of Qwen3-8B and Qwen3-32B.
DEFAULTS = {"cpu": (2048, [1024], ["fp32", "bf16"]), "cuda": (8192, [4096, 5120], ["bf16"])}


class Record:
    """The result file: one section for each kind of run, written anew after every shape."""

    def __init__(self, path: Path | None, device: str) -> None:
        self._path, self._device = path, device
        self._sections: dict[str, Any] = json.loads(path.read_text()) if path and path.is_file() else {}
        self._started: set[str] = set()

    def add(self, section: str, result: dict[str, Any]) -> None:
        if section not in self._started:
            self._started.add(section)
            self._sections[section] = {
                "command": shlex.join(["python", "benchmarks/lm_head.py", *sys.argv[1:]]),
                "environment": {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ},
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "machine": machine(self._device),
                "results": [],
            }
        self._sections[section]["results"].append(result)
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._sections, indent=1) + "\n")


def shapes(options: argparse.Namespace) -> Iterator[Shape]:
    tokens, widths, dtypes = DEFAULTS[options.device]
    tokens, widths, dtypes = options.tokens or tokens, options.width or widths, options.dtype or dtypes
    for width, dtype, tensor, share in itertools.product(widths, dtypes, options.tensor, options.share):
        yield Shape(tokens, width, options.vocabulary, dtype, share, tensor, options.device)


def logits_shapes(options: argparse.Namespace) -> Iterator[Shape]:
    tokens = options.tokens or (512 if options.device == "cpu" else DEFAULTS["cuda"][0])
    for dtype, tensor in itertools.product(options.dtype or list(DTYPES), options.tensor):
        yield Shape(tokens, 0, options.vocabulary, dtype, 1.0, tensor, options.device)


def run(options: argparse.Namespace, console: Console, record: Record) -> None:
    keys = options.contenders
    if "head" in options.what:
        for shape in shapes(options):
            outcomes = times("head", shape, keys, options.rounds)
            tables.show_times(console, shape, outcomes)
            record.add("head", tables.as_data(shape, outcomes))
    if "memory" in options.what:
        for shape in shapes(options):
            outcomes = peaks("head", shape, keys)
            tables.show_peaks(console, shape, outcomes)
            record.add("memory", tables.as_data(shape, outcomes))
    if "statistics" in options.what:
        for shape in logits_shapes(options):
            outcomes, weighed = times("statistics", shape, keys, options.rounds), peaks("statistics", shape, keys)
            tables.show_times(console, shape, outcomes)
            tables.show_peaks(console, shape, weighed)
            for key, outcome in weighed.items():
                outcomes[key].peaks_mebibytes = outcome.peaks_mebibytes
            record.add("statistics", tables.as_data(shape, outcomes))
    if "growth" in options.what:
        for shape in shapes(options):
            if shape.share == options.share[0]:
                grow(shape, options, console, record)

    if "predicted" in options.what:
        found = {gpu: predicted.table(gpu) for gpu in predicted.BANDWIDTH}
        console.print("\n".join(predicted.as_markdown(found)), soft_wrap=True)
        for cases in found.values():
            for case in cases:
                record.add("predicted", tables.rounded(case))


def grow(shape: Shape, options: argparse.Namespace, console: Console, record: Record) -> None:
    keys = options.contenders or ["ours"]
    by_tokens = {}
    for tokens in options.growth:
        grown = dataclasses.replace(shape, tokens=tokens)
        by_tokens[tokens] = times("head", grown, ["floor", *keys], options.rounds), peaks("head", grown, keys)
        outcomes, weighed = by_tokens[tokens]
        for key, outcome in weighed.items():
            outcomes[key].peaks_mebibytes = outcome.peaks_mebibytes
        record.add("growth", tables.as_data(grown, outcomes))
    tables.show_growth(console, shape, by_tokens)


def main() -> None:
    keys = {contender.key for suite in SUITES.values() for contender in suite.contenders()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=SECTIONS, default=["head", "memory"])
    parser.add_argument("--tokens", type=int, help="2048 (statistics: 512) on a CPU, 8192 on a GPU")
    parser.add_argument("--width", type=int, nargs="+", help="1024 on a CPU, 4096 and 5120 on a GPU")
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="both on a CPU, bf16 on a GPU")
    parser.add_argument("--share", type=float, nargs="+", default=[0.2, 1.0], help="of the tokens that count")
    parser.add_argument("--tensor", type=int, nargs="+", default=[1], help="tensor-parallel ranks")
    parser.add_argument("--growth", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="tokens of that section")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=DEFAULTS, default="cpu")
    parser.add_argument("--contenders", nargs="+", choices=sorted(keys), default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if any(options.vocabulary % ranks for ranks in options.tensor):
        parser.error(f"--vocabulary {options.vocabulary} is not a multiple of --tensor {options.tensor}")
    run(options, Console(), Record(options.out, options.device))


if __name__ == "__main__":
    main()
