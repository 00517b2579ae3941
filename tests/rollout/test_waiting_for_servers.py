"""A wait for servers says what it waits for, and ends soon after the run is asked to stop, whatever the servers do."""

import asyncio
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from support.commands import QUICKSTART
from support.fleets import check, requests
from support.fleets import engine_of as engine_of_stand_ins
from support.stand_in_engine import StandIn
from support.stop_points import stops_where

from megatron_fork.config import load_config
from megatron_fork.conversion import resolve_config
from megatron_fork.errors import RolloutError, StopRequested
from megatron_fork.rollout import RemoteConfig, RemoteEngine, RolloutConfig
from megatron_fork.rollout.servers.weight_sync import DiskDelivery

WEIGHTS = [("weight", torch.zeros(2))]


@contextmanager
def nobody(answers: str) -> Iterator[str]:
    """An address where no connection is taken, or where each is and none is answered."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if answers == "with silence":
            listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def engine_of(url: str, folder: Path, kind: str, lines: list[str], asked: threading.Event, **remote) -> RemoteEngine:
    return RemoteEngine(
        RolloutConfig(engine=kind, servers=[url], remote=RemoteConfig(health_seconds=0.2, **remote)),
        resolve_config(load_config(QUICKSTART).model),
        stop_tokens=(1,),
        folder=folder,
        world=None,
        stop_point=stops_where(asked.is_set),
        say=lines.append,
    )


@pytest.mark.parametrize("answers", ["refuses", "with silence"])
@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_it_is_said_and_ends_when_asked(tmp_path: Path, answers: str, kind: str) -> None:
    lines: list[str] = []
    asked = threading.Event()
    with nobody(answers) as url, closing(engine_of(url, tmp_path, kind, lines, asked)) as engine:
        threading.Timer(1.0, asked.set).start()
        with pytest.raises(StopRequested):
            engine.update_weights(WEIGHTS, 0)
        assert asked.is_set()
        # The first look at a silent server takes longer than the run has here.
        said = [f"waiting for rollout.servers, 0 of 1800 s: {url}"] if answers == "refuses" else []
        assert [line[: len(said[0])] for line in lines] == said


def test_without_a_stop_patience_decides(tmp_path: Path) -> None:
    lines: list[str] = []
    with (
        nobody("refuses") as url,
        closing(engine_of(url, tmp_path, "vllm", lines, threading.Event(), patience_seconds=0.5)) as engine,
        pytest.raises(RolloutError, match="none is ready after"),
    ):
        engine.update_weights(WEIGHTS, 0)
    assert len(lines) == 1 and url in lines[0]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_what_health_says_is_said(tmp_path: Path, kind: str) -> None:
    """Else whoever has mistyped a port or a key is told that a server has not answered yet."""
    lines: list[str] = []
    with (
        nobody("refuses") as url,
        closing(engine_of(url, tmp_path, kind, lines, threading.Event(), patience_seconds=0.5)) as engine,
        pytest.raises(RolloutError, match=r"none is ready .*: http://.*: /health: ConnectError"),
    ):
        engine.update_weights(WEIGHTS, 0)


def test_a_folder_for_weights_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    delivery = DiskDelivery(RemoteConfig(), None, tmp_path / "file" / "below", None)
    with pytest.raises(RolloutError, match=r"file/below/partial cannot be written: "):
        asyncio.run(delivery.start([], "run:1"))
    delivery = DiskDelivery(RemoteConfig(), None, tmp_path / "weights", resolve_config(load_config(QUICKSTART).model))
    asyncio.run(delivery.start([], "run:1"))
    shutil.rmtree(tmp_path / "weights")
    with pytest.raises(RolloutError, match=r"weights/partial cannot be written: "):
        asyncio.run(delivery.finish("run:1"))


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_servers_that_keep_their_weights_are_ready_whenever_they_were_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The watch over servers may have seen one before it was known which weights are meant."""
    with closing(StandIn(kind)) as server, engine_of_stand_ins([server], tmp_path, monkeypatch) as engine:
        deadline = time.monotonic() + 60
        while engine.fleet.servers[0].state != "stale" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert engine.fleet.servers[0].state == "stale"
        engine.adopt_weights("theirs")
        assert engine.health()
        check(list(engine.generate(asked := requests(4))), asked)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_server_that_lost_the_weights_it_kept_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """There are none to send it: the others go on, and the last one's end names both weights."""
    with (
        closing(StandIn(kind)) as one,
        closing(StandIn(kind)) as two,
        engine_of_stand_ins([one, two], tmp_path, monkeypatch) as engine,
    ):
        engine.adopt_weights("theirs")
        one.label = "another"
        check(list(engine.generate(asked := requests(6))), asked)
        two.label = "another"
        with pytest.raises(RolloutError, match=r"none can be used: .*another.* but was given default"):
            list(engine.generate(requests(6)))
