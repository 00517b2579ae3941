"""From the trainer to the embedded engine and back: weights exported, handed over, and responses drawn with them.

    python benchmarks/hand_over.py --device cuda --shape 0.6b --out benchmarks/results/hand_over_h200.json

export     every tensor under its Hugging Face name, as all engines get it; nothing takes it
hand-over  the same into the embedded engine's model, whose tensors are then compared with what was exported
rollout    tokens/s of `--requests` responses of `--tokens` tokens each, after one batch that warms up

Weights are random. GB are 1e9 bytes in bf16 on a GPU, float32 on a CPU; each figure is the median of `--rounds`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from head.measure import machine
from size.subject import SHAPES, Setting

from megatron_fork import distributed
from megatron_fork.models import ComputeConfig
from megatron_fork.policy import Policy, PolicyConfig
from megatron_fork.rollout import EmbeddedEngine, Request
from megatron_fork.rollout.weights import PolicyWeights
from megatron_fork.run.console import quiet_libraries

STOP = 1  # responses are to be equally long, and one that draws it is cut there: the tokens that were drawn are counted


def seconds_of(action: Callable[[], Any], rounds: int) -> float:
    """Median, after one that is not counted."""
    taken = []
    for _ in range(rounds + 1):
        _finish()
        began = time.perf_counter()
        action()
        _finish()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def requests(count: int, tokens: int, vocabulary: int) -> list[Request]:
    generator = random.Random(0)
    prompts = [tuple(generator.randrange(2, vocabulary) for _ in range(64)) for _ in range(count)]
    return [Request(number, prompt, number, 1.0, tokens) for number, prompt in enumerate(prompts)]


def differing(policy: Policy, engine: EmbeddedEngine) -> list[str]:
    """Tensors of the engine that are not what the policy exports."""
    held = dict(engine.model.named_parameters())
    return [
        f"the engine's {name} is not the policy's"
        for name, tensor in PolicyWeights(policy)
        if name in held and not torch.equal(held[name], tensor.to(held[name].dtype))
    ]


def measured(options: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> None:
    setting = Setting(options.shape, "none", "none", "auto")
    hf_config = setting.hf_config
    precision = "bf16" if options.device == "cuda" else "fp32"
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        policy = Policy(PolicyConfig(precision), None, hf_config, layout, compute=ComputeConfig())
        weights = PolicyWeights(policy)
        size = sum(tensor.nbytes for _, tensor in weights) / 1e9
        exported = seconds_of(lambda: sum(tensor.numel() for _, tensor in weights), options.rounds)
        keep({"gigabytes": size, "export_gb_per_second": size / exported})
        engine = EmbeddedEngine(
            hf_config,
            stop_tokens=(STOP,),
            pad_token=0,
            batch_size=options.requests,
            device=distributed.device(),
            dtype=policy.config.dtype,
        )
        handed = seconds_of(lambda: engine.update_weights(weights, 1), options.rounds)
        keep({"hand_over_gb_per_second": size / handed, "wrong": differing(policy, engine)})
        asked = requests(options.requests, options.tokens, hf_config.vocab_size)
        drawn: list[int] = []
        taken = seconds_of(
            lambda: drawn.append(sum(len(each.tokens) for each in engine.generate(asked))), options.rounds
        )
        keep({"tokens_per_second": drawn[-1] / taken, "responses": options.requests, "tokens": drawn[-1]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="0.6b")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64, help="of each response")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if (options.device == "cuda") != torch.cuda.is_available():
        parser.error("no GPU is visible" if options.device == "cuda" else "a GPU is visible: set CUDA_VISIBLE_DEVICES=")
    quiet_libraries()
    record: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/hand_over.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(options.device),
        "shape": options.shape,
    }

    def keep(found: dict[str, Any]) -> None:
        record.update(found)
        print(json.dumps(found), flush=True)
        if options.out:
            options.out.write_text(json.dumps(record, indent=1) + "\n")

    distributed.initialize()
    measured(options, keep)
    distributed.finalize()


if __name__ == "__main__":
    main()
