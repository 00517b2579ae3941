"""Servers that have the last weights are sent what changed, and hold the next bit for bit; all others are sent everything."""

from pathlib import Path

import pytest
import torch
from support.receiving_servers import Misdeed, fleet_of
from support.receiving_servers import digest as digest_of

from megatron_fork.errors import ConfigError
from megatron_fork.rollout import RemoteConfig, RolloutConfig
from megatron_fork.rollout.servers import event_loop, remote, weight_passes
from megatron_fork.rollout.weights import buckets


def random_weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layer.{place}": torch.randn(20 + place, 16, generator=generator).to(
            torch.bfloat16 if place % 3 else torch.float32
        )
        for place in range(9)
    }


def change(weights: dict[str, torch.Tensor], seed: int) -> None:
    """A few words of each tensor, as an update makes them."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in weights.values():
        words = tensor.view(torch.int16 if tensor.itemsize == 2 else torch.int32)
        words[torch.rand(tensor.shape, generator=generator) < 0.02] ^= 1


@pytest.fixture
def fleet(monkeypatch, tmp_path: Path):
    for module in (remote, event_loop):
        monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(
        weight_passes, "buckets", lambda given, limit, device, **how: buckets(given, 3000, device, **how)
    )

    def made(workers, *, sync: str = "gloo", lives: int = 1, **settings):
        return fleet_of(
            tmp_path, "vllm", workers=workers, sync=sync, lives=lives, **({"delta_updates": True} | settings)
        )

    return made


def check(engine, servers, weights: dict[str, torch.Tensor]) -> None:
    expected = {name: digest_of(tensor) for name, tensor in weights.items()}
    for server in servers:
        received = server.received
        assert received["label"] == engine.fleet.label
        assert all(worker == expected for worker in received["workers"])


def size_of(weights: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in weights.values())


@pytest.mark.parametrize("sync", ["gloo", "disk"])
def test_many_updates(fleet, sync: str) -> None:
    """Nothing, little and all of the words, another type, a tensor that goes and one that comes."""
    with fleet((1, 2), sync=sync, verify_weights="always") as (engine, servers):
        weights = random_weights(1)
        for version in range(8):
            engine.update_weights(list(weights.items()), version)
            check(engine, servers, weights)
            if version in (2, 3, 5):
                assert engine.update_bytes < size_of(weights) / 5
            assert engine.update_bytes <= size_of(weights)
            if version == 0:
                assert engine.update_bytes == size_of(weights)
            if version == 3:
                weights["layer.1"] = weights["layer.1"].to(torch.float32)
            if version == 5:
                weights["layer.new"] = weights.pop("layer.2")
            if version == 6:
                weights = {name: tensor * 1.5 for name, tensor in weights.items()}
            if version != 7:
                change(weights, version)
        engine.update_weights(list(weights.items()), 8)
        assert engine.update_bytes == 0
        check(engine, servers, weights)
        assert engine.lines == []


def test_one_that_lost_its_copy_is_sent_everything_and_so_are_all_with_it(fleet) -> None:
    with fleet((1, 1)) as (engine, servers):
        weights = random_weights(1)
        engine.update_weights(list(weights.items()), 0)
        change(weights, 0)
        servers[1].behave(Misdeed("forget"))
        engine.update_weights(list(weights.items()), 1)
        check(engine, servers, weights)
        assert any("a weight update broke, and is made again" in line for line in engine.lines)
        servers[1].behave(None)
        change(weights, 1)
        engine.update_weights(list(weights.items()), 2)
        check(engine, servers, weights)
        assert engine.update_bytes < size_of(weights) / 5


def test_one_that_joins_or_comes_back_is_sent_everything(fleet) -> None:
    with fleet((1, 1), lives=2) as (engine, servers):
        weights = random_weights(1)
        for version in range(2):
            engine.update_weights(list(weights.items()), version)
            change(weights, version)
        servers[0].behave(Misdeed("kill", 1))
        engine.update_weights(list(weights.items()), 2)
        check(engine, servers[1:], weights)
        servers[0].next_life()
        servers[0].start()
        change(weights, 3)
        engine.update_weights(list(weights.items()), 3)
        check(engine, servers, weights)
        assert engine.update_bytes == size_of(weights)
        change(weights, 4)
        engine.update_weights(list(weights.items()), 4)
        check(engine, servers, weights)
        assert engine.update_bytes < size_of(weights) / 5


def test_one_whose_checksums_differ_is_named_and_sent_everything(fleet) -> None:
    """It has no version of the run's until then; the other, which has proved its weights, draws meanwhile."""
    with fleet((1, 1), verify_weights="always") as (engine, servers):
        weights = random_weights(1)
        engine.update_weights(list(weights.items()), 0)
        change(weights, 0)
        servers[1].behave(Misdeed("flip", 0, 1))
        engine.update_weights(list(weights.items()), 1)
        (line,) = engine.lines
        assert (
            f"{servers[1].url} gets no weights" in line
            and list(weights)[1] in line
            and "sent all weights again" in line
        )
        assert servers[1].received["label"] == "unchecked"
        assert [server.url for server in engine.fleet.ready] == [servers[0].url]
        check(engine, servers[:1], weights)
        engine._passes.deliver(engine._delivery, engine._loop.call(engine.fleet.find_stale()), engine.fleet)
        assert engine.update_bytes == size_of(weights)
        check(engine, servers, weights)
        change(weights, 1)
        engine.update_weights(list(weights.items()), 2)
        assert engine.update_bytes < size_of(weights) / 5
        check(engine, servers, weights)


def test_an_engine_that_takes_no_changes_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.remote\.delta_updates=true with rollout\.engine=sglang"):
        RolloutConfig(engine="sglang", servers=["http://a:1"], remote=RemoteConfig(delta_updates=True)).check()
