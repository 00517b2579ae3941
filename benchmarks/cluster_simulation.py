"""A run of the 32B recipe on 512 GPUs, simulated: seconds of a step by part, what limits it, what settings and failures do.

    python benchmarks/cluster_simulation.py --out benchmarks/results/cluster_simulation.json

The run's own collector, scheduler and window of groups in flight make every decision, dynamic sampling included; only the
clock, the servers and the lengths are simulated (`tests/support/simulated_servers.py`). What is assumed is in the output.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.simulated_run import Prompts, SimulatedRun, Trainer
from support.simulated_servers import Decoding, SimulatedServers, log_normal

from megatron_fork.rollout import RolloutConfig

# 419 unexpected interruptions of 16,384 GPUs in 54 days (The Llama 3 Herd of Models, arXiv 2407.21783, section 3.3.4).
FAILURES_PER_GPU_HOUR = 419 / (16_384 * 54 * 24)
PARAMETERS = 32.8e9
PEAK_FLOPS = 989e12  # of an H100, dense bf16


@dataclass(frozen=True)
class Cluster:
    """What is assumed; times are of one H100 SXM with 80 GB, and were not measured on one."""

    gpus: int = 512
    engine_gpus: int = 256
    gpus_per_server: int = 4
    groups: int = 512
    samples: int = 16
    prompt_tokens: int = 150
    median_tokens: float = 5500.0
    sigma: float = 0.7
    longest: int = 20_480
    solve_rate: tuple[float, float] = (0.9, 0.9)
    """Of prompts: a beta distribution."""
    base_ms: float = 9.0
    """65 GB of weights at 2.3 TB/s and GPU, and 128 reductions."""
    each_ms: float = 0.02
    context_ms: float = 28.5
    """262 GB of keys and values, for a million tokens, at 2.3 TB/s and GPU."""
    cache_tokens: int = 800_000
    prefill_tokens_per_second: float = 30_000.0
    utilization: float = 0.40
    """Of the trainer's GPUs, by FLOPs with full recomputation counted."""
    sync_seconds: float = 10.0
    """65 GB into the first rank and out of it once, with 50 GB/s, and 122 buckets that take 60 ms besides."""
    serial_seconds: float = 5.0
    """What the first rank does alone."""
    checkpoint_seconds: float = 10.0
    """The trainer stands still while its state is copied; writing goes on beside it."""
    restart_seconds: float = 900.0
    """From a failure to the first token: found, queued again, servers and trainer started, weights loaded."""

    @property
    def trainer(self) -> Trainer:
        flops = (self.gpus - self.engine_gpus) * PEAK_FLOPS * self.utilization
        forward = 2 * PARAMETERS * 1.1  # attention at 7,000 tokens adds a tenth
        return Trainer(
            flops / forward, flops / (4 * forward), self.sync_seconds, self.serial_seconds, self.checkpoint_seconds
        )

    @property
    def servers(self) -> int:
        return self.engine_gpus // self.gpus_per_server

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.base_ms, self.each_ms, self.context_ms, self.cache_tokens, self.prefill_tokens_per_second)


@dataclass(frozen=True)
class Settings:
    """Of a recipe."""

    max_staleness: int = 0
    tail: str = "generate"
    dynamic_sampling: bool = True
    checkpoint_every: int = 10


def run_of(cluster: Cluster, settings: Settings) -> SimulatedRun:
    config = RolloutConfig(
        engine="vllm",
        servers=["http://simulated"],
        samples=cluster.samples,
        max_staleness=settings.max_staleness,
        tail=settings.tail,  # type: ignore[arg-type]
        dynamic_sampling=settings.dynamic_sampling,
        max_response_tokens=cluster.longest,
    )
    lengths = log_normal(cluster.median_tokens, cluster.sigma, cluster.longest)
    return SimulatedRun(
        config,
        SimulatedServers(cluster.servers, cluster.decoding, lengths),
        cluster.trainer,
        Prompts(cluster.prompt_tokens, cluster.solve_rate),
        groups=cluster.groups,
        checkpoint_every=settings.checkpoint_every,
    )


def simulated(cluster: Cluster, settings: Settings, steps: int) -> dict[str, Any]:
    """Mean seconds of a step by part, once the groups in flight are as many as they become."""
    began = time.monotonic()
    run = run_of(cluster, settings)
    rows = [run.step() for _ in range(steps)]
    warm = rows[2:]
    parts = ("rollout", "statistics", "update", "serial", "sync", "checkpoint")
    mean = {name: statistics.fmean(getattr(row, name) for row in warm) for name in parts}
    step = sum(mean.values())
    busy = sum(mean[name] for name in ("statistics", "update"))
    tokens = statistics.fmean(row.trained for row in warm)
    result = {
        "step_seconds": step,
        **{f"{name}_share": value / step for name, value in mean.items()},
        "steps_a_day": 86_400 / step,
        "trainer_busy": busy / step,
        "engines_idle": statistics.fmean(row.idle for row in warm) / cluster.servers / step,
        "tokens_trained": tokens,
        "drawn_per_trained": statistics.fmean(row.generated for row in warm) / tokens,
        "staleness": statistics.fmean(row.staleness for row in warm),
        "staleness_max": max(row.staleness_max for row in warm),
        "put_back": statistics.fmean(row.put_back for row in warm),
        "prompts_drawn": statistics.fmean(row.drawn for row in warm),
    }
    return {**{name: round(value, 4) for name, value in result.items()}, "took": round(time.monotonic() - began, 1)}


def goodput(
    seconds: Sequence[float], every: int, cluster: Cluster, *, steps: int = 500, runs: int = 200
) -> dict[str, float]:
    """A run of `steps` with failures at random moments: each loses what came after the last checkpoint, and a restart.

    `seconds` are those of simulated steps, without checkpoints. What counts are steps that are not done again.
    """
    rate = FAILURES_PER_GPU_HOUR * cluster.gpus / 3600
    numbers = random.Random(0)
    shares, lost, failures = [], [], 0
    for _ in range(runs):
        useful = clock = since = gone = 0.0
        to_failure, done, saved = numbers.expovariate(rate), 0, 0
        while done < steps:
            step = numbers.choice(seconds) + (cluster.checkpoint_seconds if (done + 1) % every == 0 else 0.0)
            if to_failure > step:
                to_failure -= step
                clock, since, done = clock + step, since + step, done + 1
                if done % every == 0 or done == steps:
                    useful, since, saved = useful + since, 0.0, done
                continue
            failures += 1
            clock += to_failure + cluster.restart_seconds
            gone += since + to_failure
            since, done = 0.0, saved
            to_failure = numbers.expovariate(rate)
        plain = steps * statistics.fmean(seconds)
        shares.append(plain / clock)
        lost.append(gone)
    return {
        "goodput": round(statistics.fmean(shares), 4),
        "worst_of_20": round(sorted(shares)[len(shares) // 20], 4),
        "failures": round(failures / runs, 2),
        "hours_lost": round(statistics.fmean(lost) / 3600, 2),
    }


def settings_rows(steps: int) -> dict[str, dict[str, Any]]:
    """What each setting does."""
    base, ahead = Settings(), Settings(max_staleness=1)
    cluster = Cluster()
    copies = replace(cluster, sync_seconds=82.0)  # from the first rank to each server by itself
    ways: dict[str, tuple[Cluster, Settings]] = {
        "on-policy": (cluster, base),
        "on-policy, without dynamic sampling": (cluster, replace(base, dynamic_sampling=False)),
        "staleness 1, tail stopped": (cluster, replace(ahead, tail="stop")),
        "staleness 1": (cluster, ahead),
        "staleness 2": (cluster, replace(ahead, max_staleness=2)),
        "staleness 1, 128 engine GPUs": (replace(cluster, engine_gpus=128), ahead),
        "staleness 1, 192 engine GPUs": (replace(cluster, engine_gpus=192), ahead),
        "staleness 1, 320 engine GPUs": (replace(cluster, engine_gpus=320), ahead),
        "staleness 1, 384 engine GPUs": (replace(cluster, engine_gpus=384), ahead),
        "on-policy, 384 engine GPUs": (replace(cluster, engine_gpus=384), base),
        "on-policy, a copy for each server": (copies, base),
        "staleness 2, a copy for each server": (copies, replace(ahead, max_staleness=2)),
        "staleness 1, 29,696 tokens": (replace(cluster, longest=29_696, median_tokens=7000.0), ahead),
        "on-policy, 29,696 tokens": (replace(cluster, longest=29_696, median_tokens=7000.0), base),
    }
    rows = {}
    for name, (where, settings) in ways.items():
        rows[name] = simulated(where, replace(settings, checkpoint_every=0), steps)
        print(name, json.dumps(rows[name]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cluster = Cluster()
    rows = settings_rows(arguments.steps)
    failures = {
        f"{gpus} GPUs, {name}, checkpoint_every={every}": goodput(
            [rows[name]["step_seconds"]], every, replace(cluster, gpus=gpus)
        )
        for gpus in (512, 4096)
        for name in ("on-policy", "staleness 1")
        for every in (1, 5, 10, 20, 50)
    }
    for name, row in failures.items():
        print(name, json.dumps(row))
    if arguments.out:
        record = {
            "command": " ".join(["python", "benchmarks/cluster_simulation.py", *sys.argv[1:]]),
            "simulated": True,
            "assumed": asdict(cluster) | {"failures_per_gpu_hour": FAILURES_PER_GPU_HOUR, "steps_of_a_run": 500},
            "rows": rows,
            "failures": failures,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
