"""What the proof that weights have arrived adds to an update of a real server on this machine's CPU.

    MEGATRON_FORK_ENGINES=FOLDER python benchmarks/arrival.py --model FOLDER --out benchmarks/results/arrival.json

The server is vLLM's or SGLang's with the model of a folder in float32, and is given its own weights over gloo, with and
without the proof. On a CPU vLLM packs its layers, and proving them takes a pass of as many tokens as the model is wide.
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
from support.engine_servers import ENGINES, serving
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_fork.rollout import RemoteConfig, RemoteEngine, RolloutConfig


def measured(engine: str, model: Path, url: str, folder: Path, verify: str, rounds: int) -> dict[str, Any]:
    weights = [
        (name, parameter.detach())
        for name, parameter in AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).named_parameters()
    ]
    lines: list[str] = []
    remote = RemoteConfig(control_seconds=300.0, verify_weights=verify, bucket_mebibytes=64)
    made = RemoteEngine(
        RolloutConfig(engine=engine, servers=[url], sync="gloo", remote=remote),
        AutoConfig.from_pretrained(model),
        stop_tokens=(1,),
        folder=folder,
        world=None,
        say=lines.append,
    )
    try:
        seconds = []
        for version in range(rounds + 1):
            made.update_weights(weights, version)
            seconds.append(round(made.update_seconds, 2))
        assert not lines, lines
        return {"verify_weights": verify, "bytes": made.update_bytes, "seconds": seconds[1:]}
    finally:
        made.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=ENGINES, default="vllm")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder, serving(arguments.engine, arguments.model, Path(folder)) as server:
        for verify in ("never", "always"):
            rows.append(measured(arguments.engine, arguments.model, server.url, Path(folder), verify, arguments.rounds))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        least = [min(row["seconds"]) for row in rows]
        words = [each if not each.startswith("/") else "FOLDER" for each in sys.argv[1:]]
        record = {
            "command": " ".join(["python", "benchmarks/arrival.py", *words]),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; loopback",
            "engine": arguments.engine,
            "rows": rows,
            "share_of_an_update": round(1 - least[0] / least[1], 3),
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
