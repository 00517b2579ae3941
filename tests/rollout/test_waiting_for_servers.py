"""A wait for servers says what it waits for, and ends soon after the run is asked to stop, whatever the servers do."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import QUICKSTART

from megatron_fork.checkpoint import resolve_config
from megatron_fork.config import load_config
from megatron_fork.errors import RolloutError, RolloutStopped
from megatron_fork.rollout import Config, RemoteConfig, RemoteEngine


@pytest.fixture(params=["refuses", "says nothing"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    """A port where nobody listens, or where connections are taken and never answered."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param == "says nothing":
            listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_it_is_said_and_ends_when_asked(tmp_path: Path, address: str, kind: str) -> None:
    lines: list[str] = []
    asked = threading.Event()
    remote = RemoteConfig(health_timeout_seconds=3.0, health_seconds=0.2)
    engine = RemoteEngine(
        Config(engine=kind, servers=[address], remote=remote),
        resolve_config(load_config(QUICKSTART).model),
        stop_tokens=(1,),
        folder=tmp_path,
        world=None,
        should_stop=asked.is_set,
        say=lines.append,
    )
    try:
        timer = threading.Timer(1.0, asked.set)
        timer.start()
        began = time.monotonic()
        with pytest.raises(RolloutStopped):
            engine.update_weights([("weight", torch.zeros(2))], 0)
        assert asked.is_set()
        # The patience is half an hour, a look at a silent server takes three seconds.
        assert time.monotonic() - began < 600
        assert lines == [] or (
            lines[0].startswith("waiting for rollout.servers, 0 of 1800 s: ") and address in lines[0]
        )
        assert list(engine.generate([])) == []
    finally:
        engine.close()


def test_without_a_stop_patience_decides(tmp_path: Path) -> None:
    lines: list[str] = []
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        engine = RemoteEngine(
            Config(engine="vllm", servers=[url], remote=RemoteConfig(patience_seconds=0.5, health_seconds=0.2)),
            resolve_config(load_config(QUICKSTART).model),
            stop_tokens=(1,),
            folder=tmp_path,
            world=None,
            say=lines.append,
        )
        with pytest.raises(RolloutError, match="none is ready after"):
            engine.update_weights([("weight", torch.zeros(2))], 0)
        engine.close()
    assert len(lines) == 1 and url in lines[0]
