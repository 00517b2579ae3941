"""What a layer keeps of a token for backward, counted on a CPU, and what it costs to keep less.

    python benchmarks/activations.py

Writes benchmarks/results/activations.json: for layers as wide as those of Qwen3-0.6B and 8B, bytes that autograd saves of a
row, by dtype and `compute.recompute`, as the difference of models with one and with three layers; and milliseconds of forward
and backward of one layer and row, the median of `--rounds`, all choices in turn in each round.
"""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from head.measure import machine  # noqa: E402
from size.subject import SHAPES  # noqa: E402
from support.saved_bytes import Case, row_of, saved_bytes  # noqa: E402

from megatron_fork import distributed  # noqa: E402
from megatron_fork.distributed import Layout, ParallelConfig, parallel_layout  # noqa: E402
from megatron_fork.models import ComputeConfig, build_model, config_from_recipe  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "activations.json"
CHOICES = ("none", "selective", "full")


def model_of(shape: str, layers: int) -> dict[str, Any]:
    """A recipe's model with the widths of `shape` and a small vocabulary."""
    return {"model_type": "qwen3", **SHAPES[shape], "vocab_size": 512, "num_hidden_layers": layers}


def kept(shape: str, lengths: tuple[int, ...], dtype: str, recompute: str) -> float:
    """Bytes a token and layer."""
    one, three = (
        saved_bytes(Case(model_of(shape, layers), lengths, compute={"recompute": recompute}, dtype=dtype))
        for layers in (1, 3)
    )
    return (three - one) / 2 / sum(lengths)


def passes(shape: str, lengths: tuple[int, ...], recompute: str, layout: Layout) -> Callable[[], None]:
    """Forward and backward of one layer in float32, without an LM head."""
    compute = ComputeConfig(backend="local", recompute=recompute)  # type: ignore[arg-type]
    model = build_model(config_from_recipe(model_of(shape, 1)), layout.config, compute=compute)
    hidden = torch.randn(sum(lengths), 1, model.config.hidden_size, requires_grad=True)
    row = row_of(lengths)
    angles = model.rotary_pos_emb(max(lengths))

    def run() -> None:
        found = model.decoder(hidden, None, rotary_pos_emb=angles, packed_seq_params=row)
        found.sum().backward()

    return run


def times(shape: str, lengths: tuple[int, ...], rounds: int) -> dict[str, float]:
    """Milliseconds by choice."""
    distributed.initialize()
    with parallel_layout(ParallelConfig()) as layout:
        return milliseconds({recompute: passes(shape, lengths, recompute, layout) for recompute in CHOICES}, rounds)


def milliseconds(actions: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            taken[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(each[1:]) for name, each in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["0.6b", "8b"])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    lengths = (options.tokens,)
    command = shlex.join(["python", "benchmarks/activations.py", *sys.argv[1:]])
    record: dict[str, Any] = {"command": command, "machine": machine("cpu"), "tokens": options.tokens, "results": []}
    for shape in options.shape:
        taken = times(shape, lengths, options.rounds)
        gc.collect()  # the layers that were timed: those of 8B are gigabytes
        for recompute in CHOICES:
            found = {f"bytes, {dtype}": kept(shape, lengths, dtype, recompute) for dtype in ("bfloat16", "float32")}
            result = {"shape": shape, "recompute": recompute, **found, "milliseconds, float32": taken[recompute]}
            print(json.dumps(result), flush=True)
            record["results"].append(result)
            options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
