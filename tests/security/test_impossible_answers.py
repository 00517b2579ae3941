"""An answer that the request rules out is never trained on: it is drawn again elsewhere, and counts as an attempt."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.commands import QUICKSTART, TINY, metrics_of, run
from support.fleets import WEIGHTS, check, check_line, check_turns, engine_of, requests
from support.server_faults import HOSTILE, IMPOSSIBLE, one
from support.stand_in_engine import STOP, Exchange, Fault, StandIn

from megatron_fork.errors import RolloutError

ENGINES = ("vllm", "sglang")


@pytest.fixture(params=ENGINES)
def servers(request: pytest.FixtureRequest) -> Iterator[list[StandIn]]:
    made = [StandIn(request.param) for _ in range(2)]
    yield made
    for server in made:
        server.close()


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_it_ends_the_run_where_no_other_server_is(servers, tmp_path: Path, monkeypatch, name: str) -> None:
    bad = servers[0]
    with engine_of([bad], tmp_path, monkeypatch) as engine:
        engine.update_weights(WEIGHTS, 0)
        bad.fault = IMPOSSIBLE[name]
        asked = requests(2)
        with pytest.raises(RolloutError, match="failed 2 times, last at ") as raised:
            check(list(engine.generate(asked)), asked)
        check_line(raised.value.message, raised.value.hint, bad)
        assert bad.asked <= (2 + 2) * 2  # failures, and falls
        engine.abort()
        for left in engine.unfinished():  # not a token of it is kept
            assert not left.begun.tokens or name == "no end"


def test_it_is_drawn_elsewhere(servers, tmp_path: Path, monkeypatch) -> None:
    with engine_of(servers, tmp_path, monkeypatch, attempts=5, requests_per_server=4) as engine:
        check_turns(engine, servers[0], list(IMPOSSIBLE.values()))


def test_a_faulty_server_does_not_take_all_attempts_while_the_other_is_busy(
    servers, tmp_path: Path, monkeypatch
) -> None:
    """The faulty one is always free, being quick: a request waits for the other one."""
    bad, good = servers

    async def slowly(exchange) -> None:
        await asyncio.sleep(0.1)
        await exchange.say(exchange.right)

    with engine_of(servers, tmp_path, monkeypatch, requests_per_server=1, attempts=2) as engine:
        engine.update_weights(WEIGHTS, 0)
        bad.fault, good.fault = IMPOSSIBLE["a stop without a token"], slowly
        asked = requests(8)
        check(list(engine.generate(asked)), asked)


@pytest.mark.parametrize(
    ("tokens", "finish"),
    [
        (lambda e: [5] * (e.room - 1) + [STOP], "length"),  # SGLang looks at the length first
        (lambda e: [5] * (e.room - 1) + [STOP], "stop"),
        (lambda e: [5] * e.room, "length"),
        (lambda e: [STOP], "stop"),
    ],
)
def test_what_can_be_is_taken(servers, tmp_path: Path, monkeypatch, tokens: Any, finish: str) -> None:
    server = servers[0]
    with engine_of([server], tmp_path, monkeypatch) as engine:
        engine.update_weights(WEIGHTS, 0)
        server.fault = one(tokens, finish=finish, logprobs=lambda e: [0] + [-0.5] * (len(tokens(e)) - 1))
        asked = requests(3)
        check(list(engine.generate(asked)), asked)
        assert server.asked == 3


def test_all_tokens_each_time_are_taken_as_well(tmp_path: Path, monkeypatch) -> None:
    """SGLang without `--incremental-streaming-output`."""
    server = StandIn("sglang")

    async def all_each_time(exchange: Exchange) -> None:
        events, tokens, entries = exchange.events_of(exchange.right), [], []
        for event in events:
            tokens = event["output_ids"] = tokens + event["output_ids"]
            about = event["meta_info"]
            entries = about["output_token_logprobs"] = entries + about["output_token_logprobs"]
        await exchange.tell(events)

    with engine_of([server], tmp_path, monkeypatch) as engine:
        engine.update_weights(WEIGHTS, 0)
        asked = requests(12)
        found = []
        for server.fault in (None, all_each_time):
            completions = list(engine.generate(asked))
            check(completions, asked)
            found.append({each.number: list(each.tokens) for each in completions})
        assert found[0] == found[1]
    server.close()


def test_what_an_abort_left_is_kept(servers, tmp_path: Path, monkeypatch) -> None:
    """Somebody else ends the server's requests: they go on with the tokens that they have."""
    server = servers[0]
    aborted = one([5, 6, 7], finish="abort")

    async def at_first(exchange: Exchange) -> None:
        await (aborted(exchange) if exchange.room == 12 else exchange.say(exchange.right))

    with engine_of([server], tmp_path, monkeypatch) as engine:
        engine.update_weights(WEIGHTS, 0)
        server.fault = at_first
        asked = requests(3)
        completions = list(engine.generate(asked))
        check(completions, asked)
        assert all(list(each.tokens[:3]) == [5, 6, 7] for each in completions) and server.asked == 6


def places_in(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a tree of JSON."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [found for key in keys for found in [(value, key), *places_in(value[key])]]


@pytest.mark.parametrize("engine_name", ENGINES)
def test_any_change_of_an_answer_is_refused_or_harmless(engine_name: str, tmp_path: Path, monkeypatch) -> None:
    """One place of a right answer is another value, is missing or comes twice: what is taken can be, the rest is bounded.

    A request fails twice at most, and its server may fall with it twice.
    """
    server = StandIn(engine_name)
    with engine_of([server], tmp_path, monkeypatch) as engine:

        @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(
            change=st.sampled_from(["replace", "remove", "twice", "event twice", "event missing", "bytes"]),
            value=st.sampled_from(HOSTILE) | st.integers() | st.floats(),
            where=st.floats(0, 0.999999),
            seed=st.integers(0, 99),
        )
        def holds(change: str, value: Any, where: float, seed: int) -> None:
            server.fault = None
            if not engine.fleet.ready:
                engine.update_weights(WEIGHTS, 0)
            server.fault, before, asked = changed(change, value, where), server.asked, requests(2, seed=seed)
            try:
                check(list(engine.generate(asked)), asked)
            except RolloutError as error:
                check_line(error.message, error.hint, server)
                engine.abort()
                engine.unfinished()
                engine.fleet.error = None
            assert server.asked - before <= 8

        holds()
    server.close()


def changed(change: str, value: Any, where: float) -> Fault:
    async def fault(exchange: Exchange) -> None:
        events = exchange.events_of(exchange.right)
        places = [(events, place) for place in range(len(events))] if "event" in change else places_in(events)
        container, key = places[int(where * len(places))]
        if change == "bytes":
            events = [repr(value).encode() + b"\n\ndata: " + repr(events).encode()]
        elif change == "replace":
            container[key] = value
        elif "twice" in change and isinstance(container, list):
            container.insert(key, container[key])
        else:
            del container[key]
        await exchange.tell(events)

    return fault


@pytest.mark.slow
def test_a_run_with_one_such_server_of_two_gets_all_it_asks_for(tmp_path: Path) -> None:
    bad, good = StandIn("vllm", fault=IMPOSSIBLE["a stop token in the middle"]), StandIn("vllm")
    engine = ["rollout.engine=vllm", f"rollout.servers=[{bad.url},{good.url}]", "rollout.sync=disk"]
    blind = ["rollout.probe_prompts=0", "rollout.mismatch_limit=.inf"]  # the stand-ins have no model
    code, output = run("train", str(QUICKSTART), *TINY, *engine, *blind, f"run.folder={tmp_path / 'run'}")
    for server in bad, good:
        server.close()
    assert code == 0 and "Traceback" not in output, output
    assert [step["rollout/groups_kept"] for step in metrics_of(tmp_path / "run", "train")] == [4] * 4
    assert bad.asked > 0 and good.asked >= 4 * 16
