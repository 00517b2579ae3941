"""What the first rank, which speaks for all, spends on a step: measured against 64 servers that send real streams on loopback.

    python benchmarks/first_rank.py --tokenizer FOLDER --out benchmarks/results/first_rank.json

The client, the scheduler, the tokenizer, the verifier's processes, advantages, mini-batches and the files of a checkpoint are
the run's own. The servers have no model and decode slowly enough that each event arrives by itself. What counts is processor
time of the first rank's process, by thread. Two sizes show that it grows with the tokens; a step's is extrapolated from them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import platform
import random
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import torch
from support.decoding_servers import STOP, Decoding, decoding_servers
from support.ranks import run_on_ranks
from transformers import AutoTokenizer, Qwen3Config

from megatron_fork import objective
from megatron_fork.distributed import collectives
from megatron_fork.experience import Prompt
from megatron_fork.policy import groups_with_signal, split_into_mini_batches, with_advantages
from megatron_fork.rewards import RewardPool, RewardsConfig
from megatron_fork.rollout import Collector, RemoteConfig, RemoteEngine, RolloutConfig
from megatron_fork.rollout.in_flight import PromptGroup
from megatron_fork.run.step_files import write_groups

SAMPLES = 16
PROMPT_TOKENS = 150


class Prompts:
    """Prompts of random tokens, and the run's tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def draw(self, count: int, *, start: int, seed: int) -> list[Prompt]:
        tokens = [
            tuple(random.Random(draw).choices(range(2, 20_000), k=PROMPT_TOKENS))
            for draw in range(start, start + count)
        ]
        return [Prompt(start + place, "a question", each, "7") for place, each in enumerate(tokens)]


class Costs:
    """Processor seconds by part of the step, and by thread of this process."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[dict[str, float]]:
        row = self.rows[name] = {}
        wall, before = time.monotonic(), self._processor()
        threads = {each.name: _thread_seconds(each) for each in threading.enumerate()}
        yield row
        for each in threading.enumerate():
            spent = _thread_seconds(each) - threads.get(each.name, 0.0)
            if spent > 0.05:
                row[f"thread {each.name}"] = round(spent, 2)
        row["processor_seconds"] = round(self._processor() - before, 3)
        row["wall_seconds"] = round(time.monotonic() - wall, 3)

    def _processor(self) -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime


def _thread_seconds(thread: threading.Thread) -> float:
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def one_size(responses: int, decoding: Decoding, tokenizer: Any, workers: int) -> dict[str, Any]:
    """A step of `responses` through all servers, and what follows on the first rank."""
    groups = responses // SAMPLES
    costs = Costs()
    with (
        decoding_servers(decoding) as urls,
        tempfile.TemporaryDirectory() as folder,
        RewardPool(RewardsConfig(kind="math", workers=workers)) as rewards,
    ):
        config = RolloutConfig(
            engine="vllm",
            servers=urls,
            samples=SAMPLES,
            dynamic_sampling=False,
            max_response_tokens=decoding.longest,
            remote=RemoteConfig(stream_interval=decoding.interval),
        )
        made = RemoteEngine(config, Qwen3Config(), stop_tokens=(STOP,), folder=Path(folder), world=None)
        with closing(made) as engine:
            with costs.of("weights are labelled"):
                engine.update_weights([("weight", torch.zeros(2))], 0)
            rewards.warm()
            collector = Collector(config, engine, Prompts(tokenizer), rewards, groups=groups, world=None, seed=0)
            before = _memory()
            with costs.of("rollout") as row:
                rollouts = collector.collect(start=0, version=0)
            row["memory_mib"] = _memory() - before
        tokens = sum(len(each.response) for each in rollouts.trajectories)
        assert len(rollouts.trajectories) == responses
        after_rollout(costs, rollouts, responses, Path(folder))
    received = tokens * decoding.bytes_a_token / 1e9
    return {
        "responses": responses,
        "tokens": tokens,
        "received_gb": received,
        "peak_mib": _peak(),
        "parts": costs.rows,
    }


def after_rollout(costs: Costs, rollouts: Any, responses: int, folder: Path) -> None:
    """What the first rank does with a step's trajectories before the GPUs have them."""
    settings = objective.ObjectiveConfig()
    with costs.of("pickled for all ranks") as row:
        sent = pickle.dumps(rollouts)
        row["mib"] = len(sent) / 2**20
    with costs.of("unpickled on every rank"):
        pickle.loads(sent)
    with costs.of("advantages and metrics, every rank"):
        rollouts.metrics(version=0)
        groups_with_signal(rollouts.trajectories, settings, group_size=SAMPLES)
        trained = with_advantages(rollouts.trajectories, settings, group_size=SAMPLES)
    with costs.of("mini-batches, every rank"):
        split_into_mini_batches(trained, responses // SAMPLES // 16 or 1, group_size=SAMPLES, seed=0)
    groups = [
        PromptGroup(first, trained[first].prompt, 0, 1, dict(enumerate(trained[first : first + SAMPLES])))
        for first in range(0, responses, SAMPLES)
    ]
    with costs.of("groups of a step in a checkpoint") as row:
        write_groups(folder, groups)
        row["mib"] = sum(file.stat().st_size for file in folder.glob("*.pt")) / 2**20


def _memory() -> float:
    """Resident MiB of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def _peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def seconds_to_broadcast(mebibytes: int) -> float:
    """One `broadcast_object` of so much, on this rank."""
    payload = os.urandom(mebibytes << 20) if torch.distributed.get_rank() == 0 else None
    torch.distributed.barrier()
    started = time.monotonic()
    collectives.broadcast_object(payload, torch.distributed.group.WORLD)
    torch.distributed.barrier()
    return time.monotonic() - started


@dataclass(frozen=True)
class Cluster:
    """What a step is assumed to be, and what traffic is computed with."""

    ranks: int = 1000
    servers: int = 64
    responses: int = 8192
    weights_gb: float = 65.5
    network_gb_per_second: float = 50.0
    """Of the first rank's node; weights come in once and go out once, with NCCL."""
    seconds_a_bucket: float = 0.0
    """Of weights, for what is not their bytes: measured by benchmarks/weight_broadcast.py."""
    step_seconds: float = 0.0
    """The simulated step of benchmarks/cluster_simulation.py, on-policy."""


def of_a_step(cluster: Cluster, measured: dict[str, Any], drawn_per_trained: float) -> dict[str, float]:
    """The measured costs times what a step has more of; traffic by formula."""
    times = cluster.responses / measured["responses"]
    parts = measured["parts"]
    alone = [name for name in parts if name not in ("rollout", "weights are labelled")]
    streams = parts["rollout"]["thread rollout servers"] * times * drawn_per_trained
    pickled = parts["pickled for all ranks"]["mib"] * times * 2**20 / 1e9
    sends = math.ceil(math.log2(cluster.ranks))
    waits = {name: parts[name]["processor_seconds"] * times for name in alone}
    buckets = math.ceil(cluster.weights_gb * 1e9 / (RemoteConfig().bucket_mebibytes << 20))
    weights = 2 * cluster.weights_gb / cluster.network_gb_per_second + buckets * cluster.seconds_a_bucket
    waits["trajectories to all ranks (computed: a tree over gloo)"] = sends * pickled / cluster.network_gb_per_second
    found = {
        "tokens_trained": measured["tokens"] * times,
        "streams_processor_seconds": streams,
        "main_thread_processor_seconds": parts["rollout"]["thread MainThread"] * times * drawn_per_trained,
        "streams_share_of_a_core": streams / cluster.step_seconds,
        "waited_for_seconds": sum(waits.values()),
        "waited_for_share": sum(waits.values()) / cluster.step_seconds,
        "received_gb": measured["received_gb"] * times * drawn_per_trained,
        "trajectories_gb": pickled,
        "trajectories_sent_gb": sends * pickled,
        "weights_sent_gb": cluster.weights_gb,
        "weights_seconds": weights,
        "weights_share": weights / cluster.step_seconds,
        "memory_gib": parts["rollout"]["memory_mib"] * times / 1024,
    }
    return {name: round(value, 4) for name, value in found.items()} | {"waits": waits}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="a folder, as tools/build_qwen_tokenizer.py makes"
    )
    parser.add_argument("--responses", type=int, nargs="+", default=[256, 1024])
    parser.add_argument(
        "--simulation", type=Path, default=Path(__file__).parent / "results" / "cluster_simulation.json"
    )
    parser.add_argument("--broadcast", type=Path, default=Path(__file__).parent / "results" / "weight_broadcast.json")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    row = json.loads(arguments.simulation.read_text())["rows"]["on-policy"]
    broadcast = json.loads(arguments.broadcast.read_text())["rows"]["64 servers, one process group"]
    cluster = Cluster(seconds_a_bucket=broadcast["seconds_a_bucket_without_weights"], step_seconds=row["step_seconds"])
    sizes = [(responses, 256) for responses in arguments.responses] + [(arguments.responses[0], 32)]
    measured = []
    for responses, interval in sizes:
        decoding = Decoding(servers=cluster.servers, interval=interval, events_a_second=64_000 / interval)
        measured.append({"stream_interval": interval, **one_size(responses, decoding, tokenizer, workers=2)})
        print(json.dumps(measured[-1]), flush=True)
    of_step = {
        f"stream_interval={each['stream_interval']}, from {each['responses']} responses": of_a_step(
            cluster, each, row["drawn_per_trained"]
        )
        for each in measured
    }
    record = {
        "command": " ".join(["python", "benchmarks/first_rank.py", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; busy with other work",
        "assumed": asdict(cluster) | {"drawn_per_trained": row["drawn_per_trained"], "lengths": asdict(Decoding(64))},
        "measured": measured,
        "broadcast of 128 MiB over gloo on loopback, seconds by ranks": {
            ranks: max(run_on_ranks(seconds_to_broadcast, ranks, 128)) for ranks in (2, 4)
        },
        "of_a_step": of_step,
    }
    print(json.dumps(record["of_a_step"], indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
