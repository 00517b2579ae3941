"""The policy at full size on one GPU: statistics pass and update, their speed, their memory, and the longest response.

    python benchmarks/full_size.py --device cuda --shape 0.6b --out benchmarks/results/full_size_h200_0.6b.json
    python benchmarks/full_size.py --device cuda --shape 8b --optimizer none --recompute full --out ...
    python benchmarks/full_size.py --device cpu --shape tiny --optimizer adam distributed none    # a dry run, seconds

speed    seconds, tokens/s and model FLOP utilisation of `Policy.statistics` and `Policy.update`, median of `--rounds`
peak     most memory that is allocated during either, with what is held between calls (weights, gradients, optimizer); of an
         update also by token and layer, and beside what the planner says of one sequence
longest  the longest response whose statistics and update fit, found by bisection to `--grain` tokens

Weights and tokens are random. One sequence is a prompt of `--prompt` tokens and a response; an update marks a random share
`--ratio` of the response tokens.

Model FLOPs of a sequence of L tokens, of which R rows pass the LM head: forward 2 N L + 2 L^2 a layers + 2 R d V, with N the
parameters outside embedding and head, a = heads x head width, d the hidden size, V the vocabulary: causal attention has L^2 / 2
scores, at 4 a operations each. An update costs three forwards. What is recomputed is not counted (arXiv 2204.02311,
appendix B). Utilisation is of the dense bf16 peak in `PEAKS`, by the device's name, or of `--peak-tflops`.

Memory of 8B: bf16 weights 15.3 GiB, float32 gradients 30.5, and Adam's main parameters and moments 91.5: 137 GiB before any
activation. `--optimizer` says what an update is:

adam         Megatron's Adam, all on the device
distributed  the same sharded over the data ranks, of which there is one here: its buffers, not its savings
offload      the optimizer's state in host memory, and stepped there (8B: about 120 GiB of it)
none         forward, backward and gradients as an update has them, and no step
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from head.measure import machine, peak_mebibytes
from size.planned import planned_gibibytes
from size.subject import SHAPES, Setting, Work, longest_that_fits

from megatron_fork import distributed
from megatron_fork.distributed import Layout, parallel_layout
from megatron_fork.models import ComputeConfig, choose_attention, choose_backend, choose_elementwise
from megatron_fork.planning import Machine
from megatron_fork.policy import Policy
from megatron_fork.run.console import quiet_libraries

_GIB = 2**30
# Dense bf16 TFLOP/s as the vendor states them; the first name that the device's contains.
PEAKS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "GH200": 989.4,
    "A100": 312.0,
    "L40S": 362.05,
    "RTX 4090": 165.2,
}
RESPONSES = {"cpu": [64, 128], "cuda": [8192, 16384, 29696]}


def fits(action: Callable[[], None]) -> bool:
    """Whether the device's memory is enough for it."""
    enough = True
    try:
        action()
    except torch.OutOfMemoryError:
        enough = False
    # After the exception, whose frames hold what was allocated.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return enough


def seconds_of(action: Callable[[], None], rounds: int, device: str) -> float:
    """Median after one round of warming up."""
    taken = []
    for _ in range(rounds + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        action()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def held_gibibytes(device: str) -> float | None:
    return torch.cuda.memory_allocated() / _GIB if device == "cuda" else None


def measured(
    action: Callable[[], None], flops: float, tokens: int, options: argparse.Namespace, peak_tflops: float | None
) -> dict[str, Any]:
    """Speed and memory of one action, or that it does not fit."""
    found: dict[str, Any] = {}

    def weigh() -> None:
        action()  # optimizer state is made in the first update
        found["held_gib"] = held_gibibytes(options.device)
        found["peak_over_held_gib"] = peak_mebibytes(action, options.device) / 1024
        seconds = seconds_of(action, options.rounds, options.device)
        rate = flops / seconds / 1e12
        found.update(seconds=seconds, tokens_per_second=tokens / seconds, model_tflops_per_second=rate)
        found["utilisation"] = rate / peak_tflops if peak_tflops else None

    return found if fits(weigh) else {"fits": False}


def results_of(setting: Setting, layout: Layout, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each length and ratio, then the longest response of each ratio."""
    config, peak_tflops = setting.hf_config, assumed_peak(options)
    held: list[Policy] = []
    if not fits(lambda: held.append(setting.policy(layout))):
        yield {**asdict(setting), "fits": False}
        return
    policy = held.pop()

    def work(response: int, ratio: float, sequences: int) -> Work:
        return Work.of(config.vocab_size, sequences, options.prompt, response, ratio)

    for response in options.response:
        whole = work(response, 1.0, options.sequences)
        rows, tokens = whole.batch.response_tokens, sum(sequence.length for sequence in whole.batch.sequences)
        about = {**asdict(setting), "response": response, "sequences": options.sequences, "tokens": tokens}
        forward = whole.forward_flops(config, rows)
        outcome = measured(lambda whole=whole: whole.statistics(policy), forward, tokens, options, peak_tflops)
        yield {**about, "what": "statistics", **outcome}
        for ratio in options.ratio:
            part = work(response, ratio, options.sequences)
            flops = 3 * part.forward_flops(config, int(part.selected_t.sum()))
            outcome = measured(lambda part=part: part.update(policy), flops, tokens, options, peak_tflops)
            planned = planned_gibibytes(
                config, setting.compute, machine_of(setting, options), tokens // options.sequences, ratio
            )
            memory = {"planned_peak_gib": planned}
            if outcome.get("peak_over_held_gib"):
                each = outcome["peak_over_held_gib"] * _GIB / tokens / config.num_hidden_layers
                memory["peak_bytes_per_token_and_layer"] = each
            yield {**about, "what": "update", "ratio": ratio, **outcome, **memory}
    if not options.limit:
        return
    for ratio in options.ratio:

        def both_fit(response: int, ratio: float = ratio) -> bool:
            one = work(response, ratio, 1)
            return fits(lambda: one.statistics(policy)) and fits(lambda: one.update(policy))

        found = longest_that_fits(both_fit, first=max(options.response), limit=options.limit, grain=options.grain)
        about = {**asdict(setting), "what": "longest", "ratio": ratio, "grain": options.grain}
        yield {**about, "response": found, "at_limit": found + options.grain > options.limit}


def machine_of(setting: Setting, options: argparse.Namespace) -> Machine:
    """What the planner needs to know of it."""
    return Machine(choose_backend(setting.compute).backend, on_gpu=options.device == "cuda")


def assumed_peak(options: argparse.Namespace) -> float | None:
    """TFLOP/s that utilisation is of; None where nobody says."""
    if options.peak_tflops or options.device == "cpu":
        return options.peak_tflops
    name = torch.cuda.get_device_name()
    return next((peak for known, peak in PEAKS.items() if known in name), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=RESPONSES, default="cuda")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["0.6b"])
    parser.add_argument("--optimizer", nargs="+", choices=["adam", "distributed", "offload", "none"], default=["adam"])
    parser.add_argument("--recompute", nargs="+", choices=["none", "selective", "full"], default=["none"])
    parser.add_argument("--backend", nargs="+", choices=["auto", "local", "transformer_engine"], default=["auto"])
    parser.add_argument("--response", type=int, nargs="+", help="tokens; 8192, 16384 and 29696 on a GPU")
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.2, 1.0], help="of the tokens that are trained")
    parser.add_argument("--prompt", type=int, default=None, help="tokens; 512 on a GPU")
    parser.add_argument("--sequences", type=int, default=1, help="of a mini-batch, each a micro-batch of its own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="tokens up to which the longest response is sought; 0: it is not")
    parser.add_argument("--grain", type=int, default=None, help="of that search; 1024 on a GPU")
    parser.add_argument("--peak-tflops", type=float, help="of the device, instead of what PEAKS says")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    if on_gpu != torch.cuda.is_available():
        parser.error("no GPU is visible" if on_gpu else "a GPU is visible: set CUDA_VISIBLE_DEVICES= for --device cpu")
    options.response = options.response or RESPONSES[options.device]
    options.prompt = options.prompt or (512 if on_gpu else 16)
    options.grain = options.grain or (1024 if on_gpu else 64)
    options.limit = (262_144 if on_gpu else 256) if options.limit is None else options.limit
    run(options)


def run(options: argparse.Namespace) -> None:
    """All settings in turn; the result file is written anew after every figure."""
    quiet_libraries()
    settings = [
        Setting(shape, optimizer, recompute, backend)
        for shape in options.shape
        for backend in options.backend
        for recompute in options.recompute
        for optimizer in options.optimizer
    ]
    record: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/full_size.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(options.device),
        "peak_tflops_assumed": assumed_peak(options),
        "prompt_tokens": options.prompt,
        "layers": {name: asdict(choose_backend(ComputeConfig(backend=name))) for name in options.backend},
        "kernels of local layers": {
            "attention": asdict(choose_attention(ComputeConfig(), torch.bfloat16)),
            "elementwise": asdict(choose_elementwise(ComputeConfig())),
        },
        "results": [],
    }
    distributed.initialize()
    with parallel_layout(distributed.ParallelConfig()) as layout:
        for setting in settings:
            for result in results_of(setting, layout, options):
                print(json.dumps(result), flush=True)
                record["results"].append(result)
                if options.out:
                    options.out.write_text(json.dumps(record, indent=1) + "\n")
            gc.collect()  # the next policy needs the room
    distributed.finalize()


if __name__ == "__main__":
    main()
