"""The LM head's Triton kernels compiled by several processes at a time, then tuned by one, into Triton's cache.

    TRITON_CACHE_DIR=runs/kernels python benchmarks/warm_up.py --device cuda

A worker makes the same calls as a run does, with some of each kernel's configurations, which it runs once and does not time.
Compiled code and tuned choices are then in Triton's cache (`TRITON_CACHE_DIR`). On a CPU the kernels are interpreted, and
nothing is compiled: a dry run.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DTYPES = ("bfloat16", "float32")
KINDS = ("statistics", "statistics with gradient", "loss", "loss with entropy")


@dataclass(frozen=True)
class Call:
    """One way in which a run calls the LM head; `vocabulary` columns, as tuning is by their number."""

    kind: str
    dtype: str
    device: str
    vocabulary: int
    tokens: int

    def __call__(self) -> None:
        import torch

        from megatron_fork.vocab_parallel import TokenStatistics, VocabParallelConfig, lm_head_loss, lm_head_statistics

        dtype, config = getattr(torch, self.dtype), VocabParallelConfig(kernels="triton")
        learns = self.kind != "statistics"
        hidden = torch.randn(self.tokens, 64, device=self.device, dtype=dtype, requires_grad=learns)
        weight = torch.randn(self.vocabulary, 64, device=self.device, dtype=dtype, requires_grad=learns)
        targets = torch.arange(self.tokens, device=self.device) % self.vocabulary

        def total(statistics: TokenStatistics, _: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            entropy = 0.1 * statistics.entropy.sum() if "entropy" in self.kind or "gradient" in self.kind else 0.0
            return statistics.logprob.sum() + entropy, {}

        if self.kind.startswith("loss"):
            lm_head_loss(hidden, weight, targets, total, config=config)[0].backward()
        else:
            found = lm_head_statistics(hidden, weight, targets, config=config)
            if learns:
                total(found, slice(None))[0].backward()


def tuned_kernels() -> Iterator[Any]:
    """Every kernel of the LM head that Triton tunes, of the modules that are loaded."""
    import triton

    for name, module in list(sys.modules.items()):
        if name.startswith("megatron_fork.vocab_parallel"):
            yield from (each for each in vars(module).values() if isinstance(each, triton.runtime.Autotuner))


def compile_some(call: Call, worker: int, workers: int) -> float:
    """In a process of its own: every `workers`-th configuration of each kernel that the call runs. Its seconds."""
    import importlib

    importlib.import_module("megatron_fork.vocab_parallel.triton_tile")
    began = time.perf_counter()
    for kernel in tuned_kernels():
        # At least one: a process that has none of its own compiles one that another has too.
        kernel.configs = kernel.configs[worker::workers] or kernel.configs[:1]
        kernel.cache_results = False  # it has timed nothing
        kernel._do_bench = run_once
    call()
    return time.perf_counter() - began


def run_once(kernel_call: Callable[[], None], quantiles: Any) -> list[float]:
    kernel_call()
    return [0.0, 0.0, 0.0]


def compiled(cache: Path) -> int:
    return sum(1 for _ in cache.rglob("*.cubin"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--workers", type=int, default=min(12, len(os.sched_getaffinity(0))))
    parser.add_argument("--parts", type=int, default=3, help="of each kernel's configurations, one a job")
    parser.add_argument("--first", type=int, help="that many ways of calling alone")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    if not on_gpu:
        os.environ["TRITON_INTERPRET"] = "1"
    sizes = (151_936, 2048) if on_gpu else (300, 20)
    calls = [Call(kind, dtype, options.device, *sizes) for dtype, kind in itertools.product(DTYPES, KINDS)][
        : options.first
    ]
    cache = Path(os.environ.get("TRITON_CACHE_DIR", Path.home() / ".triton" / "cache"))
    before, began, wrong = compiled(cache), time.perf_counter(), []
    with ProcessPoolExecutor(
        options.workers, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        jobs = {
            pool.submit(compile_some, call, part, options.parts): call
            for call, part in itertools.product(calls, range(options.parts))
        }
        for job in as_completed(jobs):
            if error := job.exception():
                wrong.append(f"{jobs[job]}: {type(error).__name__}: {str(error).splitlines()[:1]}")
    compiling = time.perf_counter() - began
    began = time.perf_counter()
    for call in calls:
        call()
    if on_gpu:
        import torch

        torch.cuda.synchronize()
    record = {
        "command": shlex.join(["python", "benchmarks/warm_up.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "workers": options.workers,
        "jobs": len(jobs),
        "kernels": compiled(cache) - before,
        "compile_seconds": compiling,
        "tune_seconds": time.perf_counter() - began,
        "wrong": wrong,
    }
    print(json.dumps(record), flush=True)
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
