"""Bytes and seconds of updates that send what changed, beside updates that send all weights, to real receivers on loopback.

    python benchmarks/delta_updates.py --model FOLDER --rate 1e-6 --out benchmarks/results/delta_updates.json

Adam takes steps in float32 on random tokens, and bf16 weights are sent after each, as a bf16 run's are; `--dtype float32`
sends those of a float32 run. Two servers take them in vLLM's words with gloo workers or from a folder, apply them, and load
nothing. After the last update each tensor of each server is compared with the trainer's, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import torch
from support.engine_models import new_model
from support.receiving_servers import digest, fleet_of
from transformers import AutoModelForCausalLM, PreTrainedModel


def steps(model: PreTrainedModel, rate: float, count: int, tokens: int):
    """After each step, what fraction of the parameters got a gradient."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.95))
    for _ in range(count):
        ids = torch.randint(model.config.vocab_size, (1, tokens))
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        yield


def sent(model: PreTrainedModel, dtype: torch.dtype) -> list[tuple[str, torch.Tensor]]:
    return [(name, parameter.detach().to(dtype, copy=True)) for name, parameter in model.named_parameters()]


def measured(
    model: PreTrainedModel, dtype: torch.dtype, sync: str, updates: int, rate: float, tokens: int
) -> dict[str, Any]:
    rows: dict[str, list[Any]] = {"bytes": [], "seconds": [], "changed_words": []}
    settings: dict[str, Any] = {"delta_updates": True, "verify_weights": "never", "digests": False}
    settings |= {"control_seconds": 600.0, "bucket_mebibytes": 64}
    state = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with (
        tempfile.TemporaryDirectory() as folder,
        fleet_of(Path(folder), "vllm", workers=(1, 1), sync=sync, **settings) as (
            engine,
            servers,
        ),
    ):
        before = sent(model, dtype)
        engine.update_weights(before, 0)
        whole = {"bytes": engine.update_bytes, "seconds": round(engine.update_seconds, 3)}
        for version, _ in enumerate(steps(model, rate, updates, tokens), 1):
            weights = sent(model, dtype)
            changed = sum(int((new != old).sum()) for (_, new), (_, old) in zip(weights, before, strict=True))
            engine.update_weights(weights, version)
            rows["bytes"].append(engine.update_bytes)
            rows["seconds"].append(round(engine.update_seconds, 3))
            rows["changed_words"].append(round(changed / sum(tensor.numel() for _, tensor in weights), 5))
            before = weights
        engine.update_weights(before, updates + 1)
        nothing = engine.update_bytes
        expected = {name: digest(tensor) for name, tensor in before}
        equal = all(worker == expected for server in servers for worker in server.received["workers"])
        assert equal and not engine.lines, engine.lines
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(state[name])
    return {
        "sync": sync,
        "whole": whole,
        "changes": rows,
        "bytes_when_nothing_changed": nothing,
        "bit_for_bit_equal": equal,
        "fraction_of_bytes": round(sum(rows["bytes"]) / len(rows["bytes"]) / whole["bytes"], 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; without it, the quickstart's model")
    parser.add_argument("--rate", type=float, default=1e-6)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = (
        AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
        if arguments.model
        else new_model(tied=True, seed=1)
    )
    rows = []
    for sync in ("gloo", "disk"):
        dtype = getattr(torch, arguments.dtype)
        rows.append(measured(model, dtype, sync, arguments.updates, arguments.rate, arguments.tokens))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        words = [each if not each.startswith("/") else "FOLDER" for each in sys.argv[1:]]
        record = {
            "command": " ".join(["python", "benchmarks/delta_updates.py", *words]),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; loopback",
            "model": arguments.model.name if arguments.model else "quickstart",
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
