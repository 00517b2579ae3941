"""Right answers, changed at random in their bytes, their events and their timing, by one server of one or of two.

Whatever comes: it ends in time; what is taken can be; else one line says what came, and the rest goes on at a right server.
"""

import asyncio
import logging
import random
import time
from contextlib import closing
from pathlib import Path

import pytest
from support.fleets import WEIGHTS, check, check_line, engine_of, requests
from support.server_faults import CONTROLS
from support.stand_in_engine import Exchange, StandIn, right_answer

from megatron_fork.errors import RolloutError
from megatron_fork.rollout import Completion, RemoteEngine

CASES = 4  # of each kind; many hundreds were run once


class Recorder:
    """In the place of a connection."""

    def __init__(self) -> None:
        self.sent = b""

    def write(self, data: bytes) -> None:
        self.sent += data

    async def drain(self) -> None:
        """Nothing waits."""


async def recorded(exchange: Exchange) -> bytes:
    """The right answer, as it goes over the wire."""
    recorder = Recorder()
    await Exchange(**{**vars(exchange), "writer": recorder}).say(exchange.right)
    return recorder.sent


def mutated(data: bytes, numbers: random.Random) -> bytes:
    """With a few bytes flipped, lost, doubled, swapped, invented or cut off."""
    changed = bytearray(data)
    for _ in range(numbers.randint(1, 3)):
        start = numbers.randrange(len(changed) or 1)
        end = min(len(changed), start + numbers.choice([1, 2, 8, 100]))
        match numbers.randrange(7):
            case 0:
                changed[start:end] = bytes(byte ^ 1 << numbers.randrange(8) for byte in changed[start:end])
            case 1:
                del changed[start:end]
            case 2:
                changed[start:start] = changed[start:end]
            case 3:
                changed[start:end] = numbers.randbytes(end - start)
            case 4:
                del changed[start:]
            case 5:
                other = numbers.randrange(len(changed) or 1)
                changed[start:end], changed[other : other + 8] = changed[other : other + 8], changed[start:end]
            case 6:
                digits = [place for place, byte in enumerate(changed) if chr(byte).isdigit()]
                for place in numbers.sample(digits, min(3, len(digits))):
                    changed[place] = ord(numbers.choice("0123456789-.eE"))
    return bytes(changed)


async def other_bytes(exchange: Exchange, numbers: random.Random) -> None:
    data = mutated(await recorded(exchange), numbers)
    cuts = sorted(numbers.randrange(len(data) + 1) for _ in range(numbers.randint(0, 4)))
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        await exchange.send(data[start:end])
        await asyncio.sleep(numbers.choice([0.0, 0.0, 0.05]))
    await asyncio.sleep(numbers.choice([0.0, 0.0, 0.0, 3600.0]))  # most close the connection then
    exchange.writer.close()


async def other_events(exchange: Exchange, numbers: random.Random) -> None:
    """Lost, doubled, out of order, or of the answer to another request."""
    events = exchange.events_of(exchange.right)
    answer = right_answer(numbers.getrandbits(30), exchange.room, exchange.interval, exchange.label, 135)
    foreign = exchange.events_of(answer)
    for _ in range(numbers.randint(1, 2)):
        place = numbers.randrange(len(events) + 1)
        match numbers.randrange(6):
            case 0:
                del events[place : place + 1]
            case 1:
                events[place:place] = events[place : place + 1]
            case 2:
                numbers.shuffle(events)
            case 3:
                events[place:] = foreign[place:]
            case 4:
                events[place:place] = foreign[place:]
            case 5:
                events = foreign
    await exchange.tell(events)


async def other_times(exchange: Exchange, numbers: random.Random) -> None:
    """Late, in the middle, at the end or for ever; or closed after so many events."""
    events = exchange.events_of(exchange.right)
    stops_at, then = numbers.randrange(len(events) + 1), numbers.choice(["slow", "for ever", "closes", "aborts"])
    await asyncio.sleep(numbers.choice([0.0, 0.3]))
    await exchange.begin()
    for place, event in enumerate(events):
        if place == stops_at and then == "closes":
            exchange.writer.close()
            return
        if place == stops_at and then == "aborts":
            exchange.writer.transport.abort()
            return
        await asyncio.sleep({"slow": 0.2, "for ever": 3600.0}.get(then, 0.0) if place == stops_at else 0.0)
        await exchange.event(event)
    await exchange.end()


KINDS = {"bytes": other_bytes, "events": other_events, "times": other_times}


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture):
    """Such as a task whose failure nobody asked for."""
    yield
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


@pytest.mark.parametrize("engine_name", ["vllm", "sglang"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1.0, 0.5], ids=["always", "sometimes"])
def test_alone(kind: str, engine_name: str, share: float, tmp_path: Path, monkeypatch) -> None:
    with closing(StandIn(engine_name)) as server:
        for seed in range(CASES):
            with engine_of([server], tmp_path, monkeypatch, idle_seconds=0.4, patience_seconds=3.0) as engine:
                numbers = random.Random(f"{kind} {seed}")
                server.fault = sometimes(KINDS[kind], numbers, share)
                case(engine, [server], numbers)


@pytest.mark.parametrize("engine_name", ["vllm", "sglang"])
@pytest.mark.parametrize("kind", KINDS)
def test_beside_a_right_one(kind: str, engine_name: str, tmp_path: Path, monkeypatch) -> None:
    """Not one answer of the right one is thrown away."""
    with closing(StandIn(engine_name)) as bad, closing(StandIn(engine_name)) as good:
        for seed in range(CASES):
            settings = {"idle_seconds": 1.5, "attempts": 3, "requests_per_server": 4}
            with engine_of([bad, good], tmp_path, monkeypatch, **settings) as engine:
                numbers = random.Random(f"{kind} {seed}")
                bad.fault, good.asked = sometimes(KINDS[kind], numbers, numbers.choice([1.0, 0.5])), 0
                count = case(engine, [bad, good], numbers, may_fail=False)
                assert good.asked <= count
                (there,) = (each for each in engine.fleet.servers if each.url == good.url)
                assert there.falls == 0 and there.strikes == 0, there.reason


@pytest.mark.parametrize("engine_name", ["vllm", "sglang"])
def test_only_while_it_takes_weights(engine_name: str, tmp_path: Path, monkeypatch) -> None:
    """Some route of it fails, in some way, while responses are drawn; the update ends, by a line at the latest."""
    with closing(StandIn(engine_name)) as bad, closing(StandIn(engine_name)) as good:
        for seed in range(CASES):
            numbers = random.Random(seed)
            slow = {"control_seconds": 0.5, "health_timeout_seconds": 0.5, "attempts": 5, "requests_per_server": 4}
            with engine_of([bad, good], tmp_path, monkeypatch, **slow) as engine:
                bad.fault = good.fault = slowly
                bad.control, good.control = {}, {}
                engine.update_weights(WEIGHTS, 0)
                asked = requests(12, seed=seed)
                engine.submit(asked)
                routes = sorted(route for route in bad.calls if route != "/health" or numbers.random() < 0.2)
                bad.control = {numbers.choice(routes): CONTROLS[numbers.choice(sorted(CONTROLS))]}
                began = time.monotonic()
                engine.update_weights(WEIGHTS, 1)
                bad.control = {}
                completions: list[Completion] = []
                take(engine, completions, len(asked))
                check(completions, asked)
                assert time.monotonic() - began < 20.0


async def slowly(exchange: Exchange) -> None:
    await exchange.begin()
    for event in exchange.events_of(exchange.right):
        await asyncio.sleep(0.1)
        await exchange.event(event)
    await exchange.end()


def sometimes(kind, numbers: random.Random, share: float):
    async def fault(exchange: Exchange) -> None:
        if numbers.random() < share:
            await kind(exchange, numbers)
            exchange.writer.close()
            return
        await exchange.say(exchange.right)
        exchange.writer.close()

    return fault


def take(engine: RemoteEngine, completions: list[Completion], count: int) -> None:
    """Until there are so many."""
    with closing(engine.completions()) as arriving:
        while len(completions) < count:
            completion = next(arriving)
            completions += [completion] if completion is not None else []


def case(engine: RemoteEngine, servers: list[StandIn], numbers: random.Random, *, may_fail: bool = True) -> int:
    """How many requests were asked: all are answered, or a line says why not and the rest goes on at a right server."""
    began, asked = time.monotonic(), requests(numbers.choice([1, 3, 8]), seed=numbers.randrange(1000))
    engine.update_weights(WEIGHTS, 0)
    completions: list[Completion] = []
    engine.submit(asked)
    try:
        take(engine, completions, len(asked))
    except RolloutError as error:
        assert may_fail, error.message
        check_line(error.message, error.hint, servers[0])
        engine.abort()
        for server in servers:
            server.fault = None
        left = engine.unfinished()
        assert sorted([*(each.number for each in completions), *(each.number for each in left)]) == list(
            range(len(asked))
        )
        engine.fleet.error = None
        engine.update_weights(WEIGHTS, 1)
        engine.submit(left)
        take(engine, completions, len(asked))
    check(completions, asked)
    assert time.monotonic() - began < 20.0
    return len(asked)
