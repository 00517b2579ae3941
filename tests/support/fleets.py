"""Engines of stand-in servers: none is late for them, unless a test is about lateness."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from transformers import Qwen3Config

from megatron_fork.rollout import Completion, RemoteConfig, RemoteEngine, Request, RolloutConfig
from megatron_fork.rollout.servers import event_loop, fleet, remote
from support.stand_in_engine import STOP, Fault, StandIn

WEIGHTS = [("weight", torch.zeros(2))]
# A machine may do nothing for seconds: limits that are not to pass are far away.
QUICK = RemoteConfig(
    idle_seconds=60.0,
    control_seconds=60.0,
    health_seconds=0.05,
    health_timeout_seconds=5.0,
    patience_seconds=60.0,
    stream_interval=4,
    attempts=2,
)
# Where a server falls silent and another one, or a second try, does not: seconds are more than those need.
IMPATIENT = {"idle_seconds": 1.5}
# Where nothing but failure is expected: a busy machine fails as well.
HURRIED = {"idle_seconds": 0.25, "health_timeout_seconds": 0.25, "patience_seconds": 3.0}


@contextmanager
def engine_of(servers: Sequence[StandIn], folder: Path, monkeypatch, **settings: float) -> Iterator[RemoteEngine]:
    monkeypatch.setattr(fleet, "_REST_SECONDS", 0.02)
    for module in (remote, event_loop):
        monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)
    config = RolloutConfig(
        engine=servers[0].engine,
        servers=[server.url for server in servers],
        remote=RemoteConfig(**(vars(QUICK) | settings)),
    )
    hf_config = Qwen3Config(vocab_size=135)
    with closing(RemoteEngine(config, hf_config, stop_tokens=(STOP,), folder=folder, world=None)) as engine:
        engine.saved = []
        engine._save = lambda: engine.saved.append(True)
        yield engine


def requests(count: int, *, max_tokens: int = 12, seed: int = 3) -> list[Request]:
    numbers = random.Random(seed)
    return [
        Request(number, tuple(numbers.randrange(2, 135) for _ in range(6)), number + seed, 1.0, max_tokens)
        for number in range(count)
    ]


def check(completions: Sequence[Completion], asked: Sequence[Request]) -> None:
    """Each request was answered once, by what it can be answered with."""
    assert sorted(each.number for each in completions) == [request.number for request in asked]
    for each in completions:
        assert 1 <= len(each.tokens) == len(each.logprob) <= asked[each.number].max_tokens
        assert all(type(token) is int and 0 <= token < 135 for token in each.tokens)
        assert all(math.isfinite(value) and -1000 < value <= 1e-3 for value in each.logprob)
        assert STOP not in each.tokens[:-1]
        assert each.finish_reason == ("stop" if each.tokens[-1] == STOP else "length")
        assert each.finish_reason == "stop" or len(each.tokens) == asked[each.number].max_tokens
        assert each.versions[0].start == 0 and each.versions[-1].end == len(each.tokens)


def check_line(message: str, hint: str, server: StandIn) -> None:
    """One line that can be printed, and names the server and the way out."""
    assert message.isprintable() and len(message) < 700
    assert server.url in message and message.startswith("rollout.servers: ")
    assert hint.isprintable() and "resume the run" in hint


def check_turns(engine: RemoteEngine, bad: StandIn, faults: Sequence[Fault]) -> None:
    """`bad`, one of two servers, makes each fault in turn: the run goes on, and every request is answered once."""
    turns = list(faults)

    async def next_fault(exchange) -> None:
        await (turns.pop() if turns else faults[0])(exchange)

    for version in range(len(faults)):
        engine.update_weights(WEIGHTS, version)
        assert len(engine.fleet.ready) == 2
        bad.fault = next_fault
        asked = requests(24, seed=version)
        check(list(engine.generate(asked)), asked)
        bad.fault = None
        if not turns:
            return
    raise AssertionError("it was not asked often enough")
