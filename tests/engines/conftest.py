"""Servers and models that the tests of this folder share. One server runs at a time; tests are grouped by it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.commands import QUICKSTART
from support.engine_models import STOP, new_model
from support.engine_servers import RunningServer, serving

from megatron_fork.config import load_config
from megatron_fork.conversion import resolve_config
from megatron_fork.rollout import RemoteConfig, RemoteEngine, RolloutConfig


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engines)


@dataclass
class Served:
    """A running server, and the kind of model it serves."""

    server: RunningServer
    tied: bool

    @property
    def engine(self) -> str:
        return self.server.engine


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    engine, kind = request.param.split(" ")
    folder = tmp_path_factory.mktemp(f"{engine}-{kind}")
    new_model(tied=kind == "tied", seed=100).save_pretrained(folder / "model")
    with serving(engine, folder / "model", folder) as running:
        yield Served(running, kind == "tied")


@pytest.fixture
def remote(tmp_path: Path) -> Iterator:
    """Makes engines for servers, and closes them."""
    made: list[RemoteEngine] = []

    def make(
        kind: str, urls: list[str], *, sync: str = "gloo", stop_tokens: tuple[int, ...] = (STOP,), **settings: float
    ) -> RemoteEngine:
        quick = RemoteConfig(
            control_seconds=60.0,
            patience_seconds=90.0,
            health_seconds=1.0,
            health_timeout_seconds=5.0,
            stream_interval=4,
            idle_seconds=30.0,
        )
        for name, value in settings.items():
            setattr(quick, name, value)
        config = RolloutConfig(engine=kind, servers=urls, sync=sync, remote=quick, mismatch_limit=float("inf"))
        hf_config = resolve_config(load_config(QUICKSTART).model)
        engine = RemoteEngine(config, hf_config, stop_tokens=stop_tokens, folder=tmp_path / "weights", world=None)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()
