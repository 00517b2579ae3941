"""What staleness buys when lengths have a heavy tail: steps an hour, idle engines and stale tokens, on a simulated cluster.

    python benchmarks/timeline.py --out benchmarks/results/timeline.json

The scheduling is the project's own: its collector, producer and window make every decision. Only the clock is simulated:
servers that decode `slots` sequences at `base + each x sequences` seconds a token, responses of log-normal length cut at the
longest allowed, groups of random difficulty of which those without signal are replaced, a trainer with a fixed token rate, and
a pause for each weight update. One token here stands for 100. Everything assumed is in the output.

The servers of `cluster_simulation.py` are others, of one particular cluster: their full caches, growing contexts and failures
would hide what is asked here. These have none, so that rows differ by staleness alone.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import statistics
import sys
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from megatron_fork.experience import Prompt, VersionSpan
from megatron_fork.rewards import RewardPool, RewardsConfig
from megatron_fork.rollout import Collector, Completion, PartialResponse, Request, RolloutConfig

UNIT = 100  # tokens


@dataclass
class Cluster:
    """What is assumed."""

    servers: int = 16
    slots: int = 128
    base_ms: float = 20.0
    each_ms: float = 0.1
    median_length: float = 5000.0
    sigma: float = 0.8
    longest: int = 29_000
    groups: int = 512
    samples: int = 16
    train_tokens_per_second: float = 80_000.0
    update_seconds: float = 15.0


@dataclass
class Server:
    """Sequences that decode together: all gain a token at a time, `tokens` so far since the start."""

    tokens: float = 0.0
    running: list[tuple[float, int, Request]] = field(default_factory=list)  # heap by the token at which it ends
    spans: dict[int, list[tuple[int, float]]] = field(default_factory=dict)  # version, and `tokens` when it began


class SimulatedEngine:
    """Implements what the collector asks of an engine, on a clock of its own."""

    parameters = 0

    def __init__(self, cluster: Cluster, *, is_coordinated: bool) -> None:
        self.cluster = cluster
        self.is_coordinated = is_coordinated
        self.clock = self.generated = 0.0
        self.version = 0
        self.waiting: deque[Request] = deque()
        self.servers = [Server() for _ in range(cluster.servers)]
        self.arrived: deque[Completion] = deque()
        self.left: list[Request] = []

    def submit(self, requests: Sequence[Request]) -> None:
        self.waiting.extend(requests)
        self._assign()

    def generate(self, requests: Sequence[Request]) -> Generator[Completion, None, None]:
        self.submit(requests)
        for completion in self.completions():
            if completion is None:
                return
            yield completion

    def completions(self) -> Generator[Completion | None, None, None]:
        while True:
            while not self.arrived and any(server.running for server in self.servers):
                self._advance(min(map(self._until_next, self.servers)))
            yield self.arrived.popleft() if self.arrived else None

    def work(self, seconds: float) -> None:
        """Go on for so long, whatever finishes."""
        end = self.clock + seconds
        while self.clock < end:
            self._advance(min(end - self.clock, *map(self._until_next, self.servers)))

    def take_weights(self, version: int) -> None:
        self.version = version
        for server in self.servers:
            for spans in server.spans.values():
                spans.append((version, server.tokens))

    def abort(self) -> None:
        for server in self.servers:
            for _, number, request in server.running:
                begun = self._drawn(server, number, request)
                self.left.append(replace(request, begun=begun))
            server.running, server.spans = [], {}
        self.left += self.waiting
        self.waiting.clear()

    def unfinished(self) -> list[Request]:
        left, self.left = self.left, []
        return left

    def _length(self, request: Request) -> int:
        drawn = math.log(self.cluster.median_length) + self.cluster.sigma * random.Random(request.seed).gauss(0, 1)
        return max(1, round(min(math.exp(drawn), self.cluster.longest) / UNIT))

    def _assign(self) -> None:
        for _ in range(len(self.waiting)):
            server = min(self.servers, key=lambda server: len(server.running))
            if len(server.running) >= self.cluster.slots:
                return
            request = self.waiting.popleft()
            left = self._length(request) - len(request.begun.tokens)
            heapq.heappush(server.running, (server.tokens + max(1e-9, left), request.number, request))
            server.spans[request.number] = [(self.version, server.tokens)]

    def _token_seconds(self, server: Server) -> float:
        return UNIT * (self.cluster.base_ms + self.cluster.each_ms * len(server.running)) / 1000

    def _until_next(self, server: Server) -> float:
        if not server.running:
            return math.inf
        return max(0.0, server.running[0][0] - server.tokens) * self._token_seconds(server)

    def _advance(self, seconds: float) -> None:
        self.clock += seconds
        for server in self.servers:
            if not server.running:
                continue
            gained = seconds / self._token_seconds(server)
            server.tokens += gained
            self.generated += gained * len(server.running)
            while server.running and server.running[0][0] <= server.tokens + 1e-6:
                _, number, request = heapq.heappop(server.running)
                whole = self._drawn(server, number, request, ends=True)
                finish = "length" if len(whole.tokens) * UNIT >= self.cluster.longest else "stop"
                self.arrived.append(Completion(number, whole.tokens, whole.logprob, finish, whole.versions))
                del server.spans[number]
        self._assign()

    def _drawn(self, server: Server, number: int, request: Request, *, ends: bool = False) -> PartialResponse:
        start = len(request.begun.tokens)
        spans, total = list(request.begun.versions), self._length(request)
        marks = [*server.spans[number], (self.version, server.tokens)]
        origin = marks[0][1]
        for (version, _), (_, end) in pairwise(marks):
            first = spans[-1].end if spans else 0
            last = total if ends and end == marks[-1][1] else min(total, start + round(end - origin))
            if last > first and spans and spans[-1].version == version:
                spans[-1] = spans[-1]._replace(end=last)
            elif last > first:
                spans.append(VersionSpan(version, first, last))
        length = spans[-1].end if spans else 0
        return PartialResponse((request.seed,) * length, (0.0,) * length, tuple(spans))


class Prompts:
    """Prompts whose answer is how likely a response is right."""

    class tokenizer:  # noqa: N801
        @staticmethod
        def decode(tokens: Sequence[int], skip_special_tokens: bool) -> str:
            return str(tokens[0])

    def draw(self, count: int, *, start: int, seed: int) -> list[Prompt]:
        return [
            Prompt(draw, "", (0,), str(random.Random(f"{seed}/{draw}").betavariate(0.6, 0.8)))
            for draw in range(start, start + count)
        ]


def verdict(response: str, answer: str) -> bool:
    return random.Random(response).random() < float(answer)


def run(cluster: Cluster, steps: int, *, stream: bool, staleness: int, tail: str) -> dict[str, float]:
    engine = SimulatedEngine(cluster, is_coordinated=stream)
    config = RolloutConfig(
        engine="vllm", servers=["http://simulated"], samples=cluster.samples, max_staleness=staleness, tail=tail
    )
    rewards = RewardPool(RewardsConfig(kind="timeline:verdict", workers=0))
    collector = Collector(config, engine, Prompts(), rewards, groups=cluster.groups, world=None, seed=0)  # type: ignore[arg-type]
    rows: list[dict[str, float]] = []
    drawn = 0
    for version in range(steps):
        started, before = engine.clock, engine.generated
        rollouts = collector.collect(start=drawn, version=version)
        drawn += rollouts.prompts_drawn
        tokens = sum(len(each.response) for each in rollouts.trajectories)
        seconds = tokens * UNIT / cluster.train_tokens_per_second
        waited = engine.clock - started
        if staleness and tail == "generate":
            engine.work(seconds)
        else:
            engine.clock += seconds
        engine.clock += cluster.update_seconds
        engine.take_weights(version + 1)
        stale = [
            (version - span.version, span.end - span.start) for each in rollouts.trajectories for span in each.versions
        ]
        rows.append(
            {
                "seconds": engine.clock - started,
                "trainer_waits": waited,
                "generated": engine.generated - before,
                "staleness": sum(age * count for age, count in stale) / tokens,
                "staleness_max": max(age for age, _ in stale),
                "trained": tokens,
            }
        )
    rows = rows[steps // 4 :]  # from when the pipeline is full
    seconds = sum(row["seconds"] for row in rows)
    full = cluster.slots / (cluster.base_ms + cluster.each_ms * cluster.slots) * 1000 * cluster.servers
    return {
        "steps_per_hour": 3600 * len(rows) / seconds,
        "engine_use": UNIT * sum(row["generated"] for row in rows) / (seconds * full),
        "trainer_waits_share": sum(row["trainer_waits"] for row in rows) / seconds,
        "staleness_mean": statistics.fmean(row["staleness"] for row in rows),
        "staleness_max": max(row["staleness_max"] for row in rows),
        "tokens_generated_per_trained": sum(row["generated"] for row in rows) / sum(row["trained"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cluster = Cluster()
    ways = {
        "rounds": {"stream": False, "staleness": 0, "tail": "generate"},
        "refill, on-policy": {"stream": True, "staleness": 0, "tail": "generate"},
        "tail stopped, staleness 1": {"stream": True, "staleness": 1, "tail": "stop"},
        "ahead, staleness 1": {"stream": True, "staleness": 1, "tail": "generate"},
        "ahead, staleness 2": {"stream": True, "staleness": 2, "tail": "generate"},
    }
    rows = {}
    for name, way in ways.items():
        rows[name] = run(cluster, arguments.steps, **way)  # type: ignore[arg-type]
        rows[name]["times_rounds"] = rows[name]["steps_per_hour"] / rows["rounds"]["steps_per_hour"]
        print(name, json.dumps({key: round(value, 3) for key, value in rows[name].items()}), flush=True)
    if arguments.out:
        command = " ".join(["python", "benchmarks/timeline.py", *sys.argv[1:]])
        record = {"command": command, "simulated": True, "assumed": asdict(cluster), "rows": rows}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
