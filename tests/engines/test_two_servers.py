"""Two real servers get one broadcast, and one that dies or stops in the middle of an update does not keep the other from it."""

import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.engine_models import greedy_responses, new_model, requests, weights_of
from support.engine_servers import ENGINES, serving

from megatron_fork.rollout.servers import weight_passes as module


class Interrupted:
    """Weights that call `act` once, before the tensor in the middle."""

    def __init__(self, weights, act) -> None:
        self.weights, self.act = weights, act

    def __iter__(self):
        for place, each in enumerate(self.weights):
            if place == len(self.weights) // 2 and self.act is not None:
                act, self.act = self.act, None
                act()
            yield each


def check(engine, urls, model) -> None:
    """Each of these draws what Hugging Face does."""
    assert sorted(map(str, engine.fleet.ready)) == sorted(urls)
    asked = requests(4, temperature=0.0, max_tokens=16)
    expected = greedy_responses(model, asked)
    for answers in engine.replicas(asked).values():
        assert {answer.number: list(answer.tokens) for answer in answers} == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENGINES)
def test_two_servers(kind: str, remote, tmp_path: Path, monkeypatch) -> None:
    whole = module.buckets
    monkeypatch.setattr(module, "buckets", lambda weights, limit, device, **how: whole(weights, 200_000, device, **how))
    new_model(tied=True, seed=100).save_pretrained(tmp_path / "model")
    with ExitStack() as stack:
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
        first, second = (
            stack.enter_context(serving(kind, tmp_path / "model", tmp_path / name)) for name in ("first", "second")
        )
        engine = remote(kind, [first.url, second.url], sync="gloo", control_seconds=60.0)
        for version in range(2):
            model = new_model(tied=True, seed=version)
            engine.update_weights(weights_of(model), version)
            check(engine, [first.url, second.url], model)
            assert engine.update_bytes == sum(parameter.nbytes for parameter in model.parameters())
        (transfer,) = engine._delivery._transfers
        assert transfer.fits(engine.fleet.servers)

        if kind == "vllm":
            model = new_model(tied=True, seed=2)
            engine.update_weights(Interrupted(weights_of(model), lambda: second.signal(signal.SIGSTOP)), 2)
            check(engine, [first.url], model)
            second.signal(signal.SIGCONT)

        model = new_model(tied=True, seed=3)
        if kind == "vllm":
            while not engine._loop.call(engine.fleet.find_stale()):
                time.sleep(0.5)
        engine.update_weights(weights_of(model), 3)
        check(engine, [first.url, second.url], model)

        model = new_model(tied=True, seed=4)
        engine.update_weights(Interrupted(weights_of(model), lambda: second.signal(signal.SIGKILL)), 4)
        check(engine, [first.url], model)
        second.stop()
        second.start()
        model = new_model(tied=True, seed=5)
        engine.update_weights(weights_of(model), 5)
        check(engine, [first.url, second.url], model)
        assert engine.update_bytes == sum(parameter.nbytes for parameter in model.parameters())
