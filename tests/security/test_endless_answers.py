"""Whatever a server sends, and however long: it is asked `attempts` times, then the run ends by one line, or goes on elsewhere.

Memory stays within what the tokens asked for can take.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import QUICKSTART, TINY, metrics_of, run
from support.fleets import HURRIED, IMPATIENT, WEIGHTS, check, check_line, check_turns, engine_of, requests
from support.server_faults import CONTROL, CONTROLS, ENDLESS, WIRE, WORDS
from support.stand_in_engine import Exchange, StandIn, apart

from megatron_fork.errors import RolloutError

ENGINES = ("vllm", "sglang")
FOREIGN = "labels of weights that the run did not send"
# Control routes that take all the time there is.
TIMED = ("an answer that drips", "no answer", "endless interim answers", "an endless answer")


@pytest.fixture(params=ENGINES)
def servers(request: pytest.FixtureRequest) -> Iterator[list[StandIn]]:
    made = [StandIn(request.param) for _ in range(2)]
    yield made
    for server in made:
        server.close()


ALONE = [(engine, name) for name in WORDS for engine in ENGINES]
ALONE += [(ENGINES[place % 2], name) for place, name in enumerate(WIRE)]


@pytest.mark.parametrize(("servers", "name"), ALONE, indirect=["servers"])
def test_a_server_alone_ends_the_run(servers, tmp_path: Path, monkeypatch, name: str) -> None:
    bad = servers[0]
    with engine_of([bad], tmp_path, monkeypatch, **HURRIED) as engine:
        engine.update_weights(WEIGHTS, 0)
        bad.fault = ENDLESS[name]
        asked = requests(3)
        with pytest.raises(RolloutError) as raised:
            check(list(engine.generate(asked)), asked)
        check_line(raised.value.message, raised.value.hint, bad)
        engine.abort()
        assert sorted(request.number for request in engine.unfinished()) == [0, 1, 2]
        assert bad.asked <= (2 + 2) * len(asked)  # failures, and falls


def test_the_other_server_takes_over(servers, tmp_path: Path, monkeypatch) -> None:
    with engine_of(servers, tmp_path, monkeypatch, attempts=5, requests_per_server=4, **IMPATIENT) as engine:
        check_turns(engine, servers[0], list(ENDLESS.values()))


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_route_that_fails(servers, tmp_path: Path, monkeypatch, name: str) -> None:
    """Each in turn: the update ends in time, with the weights there or with a line that says what came."""
    bad = servers[0]
    with engine_of([bad], tmp_path, monkeypatch) as engine:
        limits = engine.config.remote  # of the servers too; short only where nothing but failure is expected
        engine.update_weights(WEIGHTS, 0)
        routes = [route for route in bad.calls if route != "/health"]
        assert len(routes) >= 4
        if name in TIMED:  # one of them, each fault another
            routes = [routes[TIMED.index(name) % len(routes)]]
        for version, route in enumerate(routes, start=1):
            bad.control = {route: CONTROLS[name]}
            limits.patience_seconds, limits.control_seconds, limits.health_timeout_seconds = 0.1, 0.3, 0.25
            try:
                engine.update_weights(WEIGHTS, version)
            except RolloutError as error:
                check_line(error.message, error.hint, bad)
                assert engine.saved
            bad.control = {}
            limits.patience_seconds, limits.control_seconds, limits.health_timeout_seconds = 30.0, 60.0, 5.0
            engine.update_weights(WEIGHTS, version)
        asked = requests(3)
        check(list(engine.generate(asked)), asked)


def test_health_that_fails_takes_the_work_elsewhere(servers, tmp_path: Path, monkeypatch) -> None:
    bad, _ = servers
    with engine_of(servers, tmp_path, monkeypatch, attempts=100, health_timeout_seconds=0.25) as engine:
        for fault in CONTROL["health that never ends"], {"/health": CONTROLS["redirects to itself"]}:
            engine.update_weights(WEIGHTS, 0)
            bad.control = fault
            deadline = time.monotonic() + 60.0
            while len(engine.fleet.ready) == 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            asked = requests(10)
            check(list(engine.generate(asked)), asked)
            bad.control = {}


def test_one_that_does_not_tell_its_weights_holds_nobody_up(servers, tmp_path: Path, monkeypatch) -> None:
    """The steps of an update may take an hour; being asked which weights there are may not."""
    bad, good = servers
    bad.control = dict.fromkeys(("/model_info", "/weight_info"), CONTROLS["no answer"])
    with engine_of(servers, tmp_path, monkeypatch, control_seconds=3600.0, health_timeout_seconds=1.5) as engine:
        engine.update_weights(WEIGHTS, 0)
        assert [str(each) for each in engine.fleet.ready] == [good.url]
        asked = requests(10)
        check(list(engine.generate(asked)), asked)


def test_a_label_that_is_empty_is_none_of_the_run(servers, tmp_path: Path, monkeypatch) -> None:
    """Before the first update the run has no label either."""
    server = servers[0]
    server.label = ""
    with engine_of([server], tmp_path, monkeypatch) as engine:
        deadline = time.monotonic() + 60.0
        while engine.fleet.servers[0].state == "down":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert engine.fleet.error is None
        engine.update_weights(WEIGHTS, 0)
        asked = requests(3)
        check(list(engine.generate(asked)), asked)


def test_a_server_with_other_weights_after_every_update_is_given_up(servers, tmp_path: Path, monkeypatch) -> None:
    """Not given the weights for ever, and not waited for."""
    bad = servers[0]
    bad.control = CONTROL["another label after every update"]
    with engine_of([bad], tmp_path, monkeypatch, patience_seconds=600.0) as engine:
        with pytest.raises(RolloutError, match=r"none can be used: .* given up after 2 failures") as raised:
            engine.update_weights(WEIGHTS, 0)
        check_line(raised.value.message, raised.value.hint, bad)
        assert bad.calls["/update_weight_version"] <= 4 and engine.saved


def test_a_probe_that_nobody_answers_ends_the_run(servers, tmp_path: Path, monkeypatch) -> None:
    """Weights that no server has shown to have are not taken for proven."""
    bad = servers[0]
    with engine_of([bad], tmp_path, monkeypatch) as engine:
        engine.update_weights(WEIGHTS, 0)
        bad.fault = ENDLESS["null for the tokens"]
        with pytest.raises(RolloutError, match=r"none can be used: .* probe: ") as raised:
            engine.replicas(requests(4))
        check_line(raised.value.message, raised.value.hint, bad)
        assert bad.asked <= 8


def test_a_response_that_broke_off_after_its_end_has_ended(servers, tmp_path: Path, monkeypatch) -> None:
    """The connection is lost between the last token and the word that all is done: nothing is drawn after a stop token."""
    server = servers[0]

    async def loses_the_end(exchange) -> None:
        await exchange.begin()
        for event in exchange.events_of(exchange.right):
            await exchange.event(event)
        exchange.writer.close()

    with engine_of([server], tmp_path, monkeypatch) as engine:
        engine.update_weights(WEIGHTS, 0)
        server.fault = loses_the_end
        asked = requests(12)
        check(list(engine.generate(asked)), asked)
        assert server.asked == 12


MEBIBYTE = 1 << 20
MEMORY = (
    *(
        "an endless line",
        "an endless line of JSON",
        "endless short lines",
        "an endless error",
        "an endless header line",
    ),
    *("bytes that unpack to a thousand times as many", "events without tokens, as fast as they go"),
)


@pytest.mark.parametrize(("engine", "name"), [(ENGINES[place % 2], name) for place, name in enumerate(MEMORY)])
def test_memory_is_bounded(tmp_path: Path, monkeypatch, engine: str, name: str) -> None:
    """The server is in another process: what grows here is what was kept of what it sent."""
    with apart(engine, name) as (url, _):
        server = Elsewhere(engine, url)
        with engine_of([server], tmp_path, monkeypatch, **HURRIED) as fleet:
            fleet.update_weights(WEIGHTS, 0)
            Path("/proc/self/clear_refs").write_text("5")
            before = peak_of_memory()
            with pytest.raises(RolloutError):
                list(fleet.generate(requests(1, max_tokens=1000)))
            assert peak_of_memory() - before < 32 * MEBIBYTE


def test_an_engine_that_is_closed_holds_no_memory_of_weights(tmp_path: Path, monkeypatch) -> None:
    """However long something refers to it: its buckets are as large as their limit, not as the weights."""
    closed = []
    server = StandIn("sglang")
    for number in range(4):
        with engine_of([server], tmp_path / str(number), monkeypatch) as engine:
            engine.update_weights(WEIGHTS, 0)
        closed.append((engine, mapped_memory()))
    server.close()
    assert closed[-1][1] - closed[0][1] < 256 * MEBIBYTE


def mapped_memory() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    return int(line.split()[1]) << 10


class Elsewhere:
    def __init__(self, engine: str, url: str) -> None:
        self.engine, self.url = engine, url


def peak_of_memory() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


@pytest.mark.slow
def test_a_run_ends_by_a_line_and_goes_on_with_a_better_server(tmp_path: Path) -> None:
    """From the second step on the server says that it has other weights: the first step is saved, and what was drawn."""
    folder = tmp_path / "run"

    async def soon_wrong(exchange: Exchange) -> None:
        is_right = not (folder / "metrics.jsonl").is_file() or not metrics_of(folder, "train")
        await (exchange.say(exchange.right) if is_right else ENDLESS[FOREIGN](exchange))

    server = StandIn("sglang", fault=soon_wrong)
    quick = ["rollout.remote.attempts=2", "rollout.remote.idle_seconds=2", "rollout.remote.health_seconds=0.2"]
    engine = ["rollout.engine=sglang", f"rollout.servers=[{server.url}]", "rollout.sync=disk", *quick]
    blind = ["rollout.probe_prompts=0", "rollout.mismatch_limit=.inf"]  # the stand-in has no model
    code, output = run("train", str(QUICKSTART), *TINY, *engine, *blind, f"run.folder={folder}")
    assert code == 1 and "Traceback" not in output, output
    assert "error: rollout.servers: " in output and server.url in output and "another run:7" in output
    assert len(metrics_of(folder, "train")) == 1
    server.fault = None
    code, output = run("train", str(folder / "resolved.yaml"))
    server.close()
    assert code == 0 and "after step 1 of 4" in output, output
    assert [step["rollout/groups_kept"] for step in metrics_of(folder, "train")] == [4] * 4


@pytest.mark.slow
def test_a_server_that_lies_well_is_found_by_the_probe(tmp_path: Path) -> None:
    """Tokens that can be, log-probs that can be, the right label: but not the policy's."""
    server = StandIn("vllm")
    engine = ["rollout.engine=vllm", f"rollout.servers=[{server.url}]", "rollout.sync=disk"]
    code, output = run("train", str(QUICKSTART), *TINY, *engine, f"run.folder={tmp_path / 'run'}")
    server.close()
    assert code == 1 and "Traceback" not in output, output
    assert f"after the weight update, log-probs of {server.url} differ" in output and "rollout.probe_limit" in output
