"""What the first rank, which speaks for all, spends on a step: measured against 64 servers that send real streams on loopback.

    python benchmarks/first_rank.py --tokenizer FOLDER --out benchmarks/results/first_rank.json

The client, the scheduler, the tokenizer, the verifier's processes, advantages, mini-batches and the files of a checkpoint are
the run's own. The servers have no model and decode slowly enough that each event arrives by itself. What counts is processor
time of the first rank's process, by thread. Two sizes show that it grows with the tokens; a step's is extrapolated from them.
"""

from __future__ import annotations

import os
import pickle
import random
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import torch
from support.decoding_servers import STOP, Decoding, decoding_servers
from transformers import Qwen3Config

from megatron_fork import objective
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
    return {"responses": responses, "tokens": tokens, "peak_mib": _peak(), "parts": costs.rows}


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
