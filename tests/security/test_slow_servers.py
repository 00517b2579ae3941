"""A server that works as fast as it can is not taken for a faulty one: requests may queue there, and be held by an update."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import aclosing, closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from support.fleets import IMPATIENT, WEIGHTS, check, engine_of, requests
from support.server_faults import ENDLESS, silent
from support.stand_in_engine import Exchange, Said, StandIn

from megatron_fork.errors import RolloutError
from megatron_fork.rollout.servers.wire import Wire

ENGINES = ("vllm", "sglang")
RESUME = {"vllm": "/resume", "sglang": "/continue_generation"}
LOAD = {"vllm": "/collective_rpc", "sglang": "/update_weights_from_disk"}


@pytest.fixture(params=ENGINES)
def server(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    made = StandIn(request.param)
    yield made
    made.close()


class Batch:
    """A fault that is none: so many requests are drawn at a time, each event taking `seconds`; the rest wait in their order."""

    def __init__(self, places: int, seconds: float) -> None:
        self.places, self.seconds = asyncio.Semaphore(places), seconds

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.begin()
        async with self.places:
            for event in exchange.events_of(exchange.right):
                await asyncio.sleep(self.seconds)
                await exchange.event(event)
        await exchange.end()


def test_requests_may_queue_at_the_server(server, tmp_path: Path, monkeypatch) -> None:
    """Its memory holds two responses: the last request waits several times `idle_seconds` for its first token."""
    with engine_of([server], tmp_path, monkeypatch, **IMPATIENT) as engine:
        engine.update_weights(WEIGHTS, 0)
        server.fault = Batch(2, 0.2)
        asked = requests(16)
        began = time.monotonic()
        check(list(engine.generate(asked)), asked)
        assert time.monotonic() - began > 2 * engine.config.remote.idle_seconds
        assert server.asked == len(asked) and engine.fleet.counts["faults"] == 0


def test_a_response_may_be_put_back_into_the_queue(server, tmp_path: Path, monkeypatch) -> None:
    """An engine that runs out of memory takes it up again when others have ended."""
    places = Batch(2, 0.2)

    async def preempted(exchange: Exchange) -> None:
        if server.asked != 1:
            await places(exchange)
            return
        await exchange.begin()
        first, *others = exchange.events_of(exchange.right)
        await exchange.event(first)
        await asyncio.sleep(3.0)
        for event in others:
            await exchange.event(event)
        await exchange.end()

    with engine_of([server], tmp_path, monkeypatch, **IMPATIENT) as engine:
        engine.update_weights(WEIGHTS, 0)
        server.fault = preempted
        asked = requests(16)
        check(list(engine.generate(asked)), asked)
        assert server.asked == len(asked) and engine.fleet.counts["faults"] == 0


def test_one_that_is_lost_is_drawn_again_when_no_other_comes(server, tmp_path: Path, monkeypatch) -> None:
    """All others are answered: it does not wait longer than they and `idle_seconds`."""
    places = Batch(4, 0.05)

    async def loses_the_first(exchange: Exchange) -> None:
        await (silent if server.asked == 1 else places)(exchange)

    with engine_of([server], tmp_path, monkeypatch, **IMPATIENT) as engine:
        engine.update_weights(WEIGHTS, 0)
        server.fault = loses_the_first
        asked = requests(12)
        check(list(engine.generate(asked)), asked)
        assert server.asked == len(asked) + 1 and engine.fleet.counts["faults"] == 1


def test_a_server_that_stops_for_a_while_falls_once(server, tmp_path: Path, monkeypatch) -> None:
    """However many of its requests say so: else many at a time would be as many falls, and it would be given up."""
    stops_until = time.monotonic() + 3600.0

    async def stops(exchange: Exchange) -> None:
        while time.monotonic() < stops_until:
            await asyncio.sleep(0.02)
        await exchange.say(exchange.right)

    with engine_of([server], tmp_path, monkeypatch, idle_seconds=3.0, attempts=3) as engine:
        engine.update_weights(WEIGHTS, 0)
        server.fault = stops
        asked = requests(20)
        engine.submit(asked)
        (there,) = engine.fleet.servers
        deadline = time.monotonic() + 60.0
        while not there.falls:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        stops_until = 0.0
        with closing(engine.completions()) as arriving:
            completions = [next(each for each in arriving if each is not None) for _ in asked]
        check(completions, asked)
        assert there.falls == 1


def test_those_that_drip_do_not_excuse_each_other(server, tmp_path: Path, monkeypatch) -> None:
    """Together they bring tokens all the time, but none as many as it should."""
    with engine_of([server], tmp_path, monkeypatch, idle_seconds=0.4, attempts=1) as engine:
        engine.update_weights(WEIGHTS, 0)
        server.fault = ENDLESS["tokens that drip"]
        began = time.monotonic()
        with pytest.raises(RolloutError, match=r"sent no token, or too few, within 0\.4 s"):
            list(engine.generate(requests(12, max_tokens=100)))
        assert time.monotonic() - began < 10.0


def test_responses_are_held_as_long_as_an_update_takes(server, tmp_path: Path, monkeypatch) -> None:
    """Longer than `idle_seconds`, which a large model may need; they go on under the new weights."""
    goes_on = threading.Event()

    async def held(exchange: Exchange) -> None:
        first, *others = exchange.events_of(exchange.right)
        await exchange.begin()
        await exchange.event(first)
        while not goes_on.is_set():
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        for event in others:
            await exchange.event(event)
        await exchange.end()

    async def loads(exchange: Exchange) -> None:
        await asyncio.sleep(2.5)
        await answered(exchange)

    async def resumes(exchange: Exchange) -> None:
        goes_on.set()
        await answered(exchange)

    with engine_of([server], tmp_path, monkeypatch, idle_seconds=2.0) as engine:
        engine.update_weights(WEIGHTS, 0)
        server.fault = held
        asked = requests(4)
        engine.submit(asked)
        deadline = time.monotonic() + 60.0
        while server.asked < len(asked):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        server.control = {LOAD[server.engine]: loads, RESUME[server.engine]: resumes}
        engine.update_weights(WEIGHTS, 1)
        completions = []
        for completion in engine.completions():
            completions += [completion] if completion is not None else []
            if len(completions) == len(asked):
                break
        check(completions, asked)
        assert server.asked == len(asked) and engine.fleet.counts["faults"] == 0


def test_what_breaks_off_after_an_update_is_kept_as_far_as_its_weights_are_known(
    server, tmp_path: Path, monkeypatch
) -> None:
    """Engines name the weights of tokens at the end of a response: where that does not come, the update is the limit."""
    is_watched, goes_on = threading.Event(), threading.Event()

    async def breaks_off(exchange: Exchange) -> None:
        if goes_on.is_set():
            await exchange.say(exchange.right)
            return
        before, after = exchange.events_of([Said([5] * 4, [-0.5] * 4), Said([6] * 4, [-0.5] * 4)])[:2]
        await exchange.begin()
        while not is_watched.is_set():
            await asyncio.sleep(0.02)
        await exchange.event(before)
        while not goes_on.is_set():
            await asyncio.sleep(0.02)
        await exchange.event(after)
        await asyncio.sleep(0.3)
        exchange.writer.close()

    async def resumes(exchange: Exchange) -> None:
        goes_on.set()
        await answered(exchange)

    with engine_of([server], tmp_path, monkeypatch) as engine:
        engine.update_weights(WEIGHTS, 0)
        server.fault = breaks_off
        engine.submit(requests(1))
        submitted, deadline = engine.fleet.last_token_time, time.monotonic() + 60.0
        is_watched.set()
        with closing(engine.completions()) as arriving:
            while engine.fleet.last_token_time == submitted:  # until the first tokens have come
                assert time.monotonic() < deadline
                next(arriving)
        server.control = {RESUME[server.engine]: resumes}
        engine.update_weights(WEIGHTS, 1)
        with closing(engine.completions()) as arriving:
            (completion,) = [next(each for each in arriving if each is not None)]
        assert list(completion.tokens[:4]) == [5] * 4
        assert [tuple(span) for span in completion.versions] == [(0, 0, 4), (1, 4, len(completion.tokens))]


def test_what_was_answered_before_a_failure_is_kept(server, tmp_path: Path, monkeypatch) -> None:
    """By whoever goes on: as completions that are taken before the error is told, or as requests that are left."""

    async def fails_the_first(exchange: Exchange) -> None:
        await (ENDLESS["a stream that breaks in a chunk"] if server.asked == 1 else Batch(1, 0.1))(exchange)

    with engine_of([server], tmp_path, monkeypatch, attempts=1) as engine:
        engine.update_weights(WEIGHTS, 0)
        server.fault = fails_the_first
        engine.submit(requests(8))
        time.sleep(0.3)  # some come before it is looked for them, others when it is aborted
        taken = []
        with pytest.raises(RolloutError), closing(engine.completions()) as arriving:
            taken.extend(each.number for each in arriving if each is not None)
        time.sleep(0.3)
        engine.abort()
        assert sorted([*taken, *(each.number for each in engine.unfinished())]) == list(range(8))


class Ports(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        self.seen.append(self.client_address[1])
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_connection_that_has_rested_is_not_used_again() -> None:
    """Servers close theirs after 5 s: a request that comes in that moment would be lost, and be counted as a fault."""

    async def asks(url: str) -> None:
        async with aclosing(Wire(url, None, connections=8)) as wire:
            for seconds in (0.0, 0.0, 3.0):
                await asyncio.sleep(seconds)
                await wire.ask("GET", "/health", 10.0)

    with ThreadingHTTPServer(("127.0.0.1", 0), Ports) as httpd:
        httpd.daemon_threads = True
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        asyncio.run(asks(f"http://127.0.0.1:{httpd.server_port}"))
        httpd.shutdown()
    first, second, third = Ports.seen
    assert first == second != third


async def answered(exchange: Exchange) -> None:
    await exchange.send(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
    )
