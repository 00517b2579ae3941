"""Servers and models that the tests of this folder share. One server runs at a time; tests are grouped by it."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from commands import QUICKSTART
from engine_servers import RunningServer, serving
from transformers import AutoModelForCausalLM, PreTrainedModel

from megatron_fork.config import load_config
from megatron_fork.conversion import resolve_config
from megatron_fork.rollout import RemoteConfig, RemoteEngine, Request, RolloutConfig

STOP = 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.engines)


def new_model(*, tied: bool, seed: int) -> PreTrainedModel:
    """Random weights of the quickstart's size, sharp enough that greedy decoding has no near ties."""
    config = resolve_config(load_config(QUICKSTART).model)
    config.tie_word_embeddings = tied
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


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


def weights_of(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    return [(name, parameter.detach()) for name, parameter in model.named_parameters()]


def requests(count: int, *, temperature: float = 1.0, max_tokens: int = 20, seed: int = 8, **settings) -> list[Request]:
    generator = random.Random(seed)
    return [
        Request(
            number,
            tuple(generator.randrange(2, 135) for _ in range(generator.randint(1, 9))),
            number + 77,
            temperature,
            max_tokens,
            **settings,
        )
        for number in range(count)
    ]


@torch.no_grad()
def logits_of(model: PreTrainedModel, request: Request, response: tuple[int, ...]) -> torch.Tensor:
    """`[response tokens, vocab]` of one pass over the whole sequence."""
    whole = torch.tensor([[*request.tokens, *response]])
    return model(input_ids=whole).logits[0, len(request.tokens) - 1 : -1].double()


def logprob_of(logits: torch.Tensor, response: tuple[int, ...]) -> torch.Tensor:
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


def greedy_responses(model: PreTrainedModel, asked: list[Request]) -> dict[int, list[int]]:
    return {
        request.number: model.generate(
            torch.tensor([request.tokens]),
            do_sample=False,
            max_new_tokens=request.max_tokens,
            eos_token_id=STOP,
            pad_token_id=0,
        )[0, len(request.tokens) :].tolist()
        for request in asked
    }
