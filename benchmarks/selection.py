"""The exact k-th largest against sorting and `torch.kthvalue`: seconds, peak memory, bytes on the wire.

    python benchmarks/selection.py --out benchmarks/results/selection_cpu.json
    python benchmarks/selection.py --device cuda --ranks --responses 64 512 --out benchmarks/results/selection_h200.json

one_rank   seconds and peak memory by the number of values, for one way of telling the values apart after the other
ranks      the same values spread over gloo ranks, against gathering them on the first rank and sorting there
segments   `select_tokens` with a cut in every response, against one mask of all tokens a response

Contenders take turns, `--rounds` times, so that what else the machine does falls on all of them; a ratio is the median of the
rounds' ratios. A sweep is `values.max()`, the least that reading all values takes. Peak memory is of one call in a process of
its own, over what the values take. Every answer is compared with that of sorting.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from megatron_fork.selection import SelectionConfig, kth_largest, select_tokens

RATIO = 0.2
DISTRIBUTIONS = ("entropies", "half zero", "both signs")
Times = dict[str, list[float]]


def values_of(name: str, count: int, device: str, seed: int = 0) -> Tensor:
    """Made in place, so that nothing but the values counts towards a peak."""
    values, generator = torch.empty(count, device=device), torch.Generator(device).manual_seed(seed)
    if name == "both signs":
        return values.normal_(generator=generator)
    values.exponential_(1.0, generator=generator)
    return values.sub_(0.6931).clamp_(min=0.0) if name == "half zero" else values


def kth_of(count: int) -> int:
    return max(1, int(RATIO * count))


CONTENDERS: dict[str, Callable[[Tensor], float]] = {
    "sweep": lambda values: values.max().item(),
    "kth_largest": lambda values: kth_largest(values, kth_of(len(values))),
    "torch.kthvalue": lambda values: values.kthvalue(len(values) - kth_of(len(values)) + 1).values.item(),
    "torch.sort": lambda values: values.sort(descending=True).values[kth_of(len(values)) - 1].item(),
}


def in_turns(contenders: dict[str, Callable[[], Any]], rounds: int) -> tuple[Times, dict[str, Any]]:
    """Seconds of every round by contender, and what each found; one round goes before that is not counted."""
    found = {name: call() for name, call in contenders.items()}
    times: Times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            _finish()
            begin = time.perf_counter()
            call()
            _finish()
            times[name].append(time.perf_counter() - begin)
    return times, found


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(times: Times, unit: str) -> dict[str, dict[str, Any]]:
    """Median seconds, and the median over rounds of the ratio to `unit` of the same round."""
    return {
        name: {
            "seconds": median(seconds),
            f"times_{unit}": median(mine / its for mine, its in zip(seconds, times[unit], strict=True)),
            "all_seconds": seconds,
        }
        for name, seconds in times.items()
    }


def one_rank(count: int, distribution: str, rounds: int, device: str) -> dict[str, Any]:
    values = values_of(distribution, count, device)
    times, found = in_turns({name: lambda call=call: call(values) for name, call in CONTENDERS.items()}, rounds)
    assert len({found[name] for name in CONTENDERS if name != "sweep"}) == 1, found
    contenders = summary(times, "sweep")
    for name, entry in contenders.items():
        entry["times_kth_largest"] = median(
            mine / ours for mine, ours in zip(times[name], times["kth_largest"], strict=True)
        )
        entry["peak_bytes"] = (
            peak_in_own_process(name, count, distribution) if device == "cpu" else peak_on_gpu(CONTENDERS[name], values)
        )
    return {"values": count, "bytes": 4 * count, "distribution": distribution, "contenders": contenders}


def peak_on_gpu(call: Callable[[Tensor], float], values: Tensor) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(values)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_in_own_process(contender: str, count: int, distribution: str) -> int:
    command = [sys.executable, __file__, "--weigh", contender, str(count), distribution]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def weigh(contender: str, count: int, distribution: str) -> int:
    CONTENDERS[contender](values_of(distribution, 1000, "cpu"))  # what a first call loads is not the method's
    values = values_of(distribution, count, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    CONTENDERS[contender](values)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def on_ranks(count: int, ranks: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(as_rank, (ranks, count, rounds, folder), nprocs=ranks)
        result: dict[str, Any] = json.loads(Path(folder, "result.json").read_text())
    return {"values": count, "ranks": ranks, **result}


def as_rank(rank: int, ranks: int, count: int, rounds: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    values = values_of("entropies", count // ranks, "cpu", seed=rank)
    group, k = dist.group.WORLD, kth_of(count // ranks * ranks)
    contenders = {
        "kth_largest": lambda: kth_largest(values, k, group=group),
        "gather_and_sort": lambda: gather_and_sort(values, k),
    }
    times, found = in_turns({name: lambda call=call: in_step(call) for name, call in contenders.items()}, rounds)
    assert found["kth_largest"] == found["gather_and_sort"], found
    wire = {name: wire_of(call) for name, call in contenders.items()}
    if rank == 0:
        result = summary(times, "kth_largest")
        for name, entry in result.items():
            entry["wire"] = wire[name]
        Path(folder, "result.json").write_text(json.dumps({"contenders": result}))
    dist.barrier()
    dist.destroy_process_group()


def in_step(call: Callable[[], float]) -> float:
    """A call that ends when it has ended on all ranks."""
    found = call()
    dist.barrier()
    return found


def gather_and_sort(values: Tensor, k: int) -> float:
    is_first = dist.get_rank() == 0
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())] if is_first else None
    dist.gather(values, parts)
    found = torch.cat(parts).sort(descending=True).values[k - 1] if parts else torch.zeros(())
    dist.broadcast(found, src=0)
    return found.item()


def wire_of(call: Callable[[], float]) -> dict[str, float]:
    """Collectives of one call and the bytes that the busiest rank sends and receives, by the arithmetic of ring and star."""
    ranks = dist.get_world_size()
    # all_reduce: a ring sends and receives 2 (n - 1) / n of the tensor. gather, broadcast: the first rank has one each way.
    factors = {"all_reduce": 4 * (ranks - 1) / ranks, "gather": ranks - 1, "broadcast": ranks - 1}
    originals, seen = {name: getattr(dist, name) for name in factors}, []

    def counted(name: str) -> Callable[..., Any]:
        def call_and_count(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.append(tensor.nbytes * factors[name])
            return originals[name](tensor, *args, **kwargs)

        return call_and_count

    try:
        for name in factors:
            setattr(dist, name, counted(name))
        call()
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return {"collectives": len(seen), "bytes": sum(seen)}


def segments(responses: int, tokens: int, rounds: int, device: str) -> dict[str, Any]:
    entropy = values_of("entropies", responses * tokens, device)
    mask = torch.ones(len(entropy), dtype=torch.bool, device=device)
    segment = torch.arange(responses, device=device).repeat_interleave(tokens)
    config = SelectionConfig(scope="sequence")

    def mask_for_each() -> Tensor:
        chosen = torch.zeros_like(mask)
        for number in range(responses):
            places = (mask & (segment == number)).nonzero()[:, 0]
            score = entropy[places]
            chosen[places] = score >= score.kthvalue(tokens - kth_of(tokens) + 1).values
        return chosen

    contenders: dict[str, Callable[[], Tensor]] = {
        "select_tokens": lambda: select_tokens(entropy, mask, config, segments=segment).mask,
    }
    if responses * len(entropy) <= 10**10:  # quadratic: beyond, minutes a round
        contenders["mask_for_each"] = mask_for_each
    times, found = in_turns(contenders, rounds)
    assert all(torch.equal(found["select_tokens"], other) for other in found.values())
    contenders_summary = summary(times, "select_tokens")
    for entry in contenders_summary.values():
        entry["nanoseconds_per_token"] = entry["seconds"] / len(entropy) * 1e9
    return {"responses": responses, "tokens_each": tokens, "contenders": contenders_summary}


def machine(device: str) -> dict[str, Any]:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].split(":")[1].strip() if models else platform.machine(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def show(title: str, result: dict[str, Any]) -> None:
    for name, entry in result["contenders"].items():
        figures = [f"{key} {value:,.4g}" for key, value in entry.items() if isinstance(value, (int, float))]
        figures += [f"{key} {value}" for key, value in entry.items() if isinstance(value, dict)]
        print(f"{title}: {name:16s} {', '.join(figures)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, nargs="*", default=[10**6, 10**7, 10**8])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of all but --ranks, which are gloo's")
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--responses", type=int, nargs="*", default=[64, 512, 4096], help="of 2,000 tokens each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--weigh", nargs=3, metavar=("CONTENDER", "VALUES", "DISTRIBUTION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.weigh:
        print(weigh(options.weigh[0], int(options.weigh[1]), options.weigh[2]))
        return
    record: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/selection.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(options.device),
        "k": f"{RATIO} of the values",
        "one_rank": [],
        "ranks": [],
        "segments": [],
    }

    def keep(section: str, title: str, result: dict[str, Any]) -> None:
        record[section].append(result)
        show(title, result)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(record, indent=1) + "\n")

    for count in options.values:
        for distribution in DISTRIBUTIONS:
            keep("one_rank", f"{count:,} {distribution}", one_rank(count, distribution, options.rounds, options.device))
    for ranks in options.ranks:
        for count in options.values:
            keep("ranks", f"{count:,} over {ranks} ranks", on_ranks(count, ranks, options.rounds))
    for responses in options.responses:
        keep("segments", f"{responses:,} responses", segments(responses, 2000, options.rounds, options.device))


if __name__ == "__main__":
    main()
