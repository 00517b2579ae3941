"""After an update every living server has the trainer's tensors bit for bit, from one broadcast, whatever another one did.

And the first rank never holds more than two buckets.
"""

import asyncio
import random
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.receiving_servers import Misdeed, ReceivingServer, digest, fleet_of

from megatron_fork.errors import RolloutError
from megatron_fork.rollout import RemoteConfig, RemoteEngine
from megatron_fork.rollout.servers import event_loop, remote, weight_passes
from megatron_fork.rollout.servers.broadcast import BroadcastDelivery
from megatron_fork.rollout.weights import buckets
from megatron_fork.serving import address_towards

BUCKET = 3000
JOIN = {"vllm": "/init_weight_transfer_engine", "sglang": "/init_weights_update_group"}
ENGINES = ["vllm", "sglang"]


def weights(seed: int, *, tensors: int = 12) -> list[tuple[str, torch.Tensor]]:
    """A few buckets of tensors of several dtypes and shapes."""
    numbers, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    made = []
    for place in range(tensors):
        shape = [numbers.randint(1, 9) for _ in range(numbers.randint(1, 3))]
        dtype = numbers.choice([torch.float32, torch.bfloat16, torch.float16])
        made.append((f"layer.{place}", torch.randn(shape, generator=generator).to(dtype)))
    # The last is larger than a bucket.
    return [*made, ("head", torch.randn(2000, generator=generator))]


class Held(list):
    """A bucket that is counted while it lives."""

    alive, most = 0, 0

    def __init__(self, bucket) -> None:
        super().__init__(bucket)
        Held.alive += 1
        Held.most = max(Held.most, Held.alive)

    def __del__(self) -> None:
        Held.alive -= 1


def small_buckets(given, limit, device, **how):
    for bucket in buckets(given, BUCKET, device, **how):
        held = Held(bucket)
        bucket.clear()
        yield held
        del held


@contextmanager
def fleet(
    monkeypatch,
    tmp_path: Path,
    engine: str,
    *,
    workers: Sequence[int] = (1, 1, 1, 1),
    hosts: Sequence[str] = (),
    lives: int = 1,
    waiting: int = 0,
    **settings: float,
):
    """A trainer's engine and its servers, of which the last `waiting` are not started."""
    for module in (remote, event_loop):
        monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(weight_passes, "buckets", small_buckets)
    monkeypatch.setattr(Held, "most", 0)
    settings = {"workers": workers, "hosts": hosts, "lives": lives, "waiting": waiting, **settings}
    with fleet_of(tmp_path, engine, **settings) as made:
        yield made


def check(engine: RemoteEngine, servers: Sequence[ReceivingServer], sent) -> None:
    """These and no others are ready, with exactly what was sent, and draw again."""
    assert sorted(server.url for server in engine.fleet.ready) == sorted(server.url for server in servers)
    assert Held.most <= 2
    expected = {name: digest(tensor) for name, tensor in sent}
    for server in servers:
        received = server.received
        assert received["label"] == engine.fleet.label
        assert all(worker == expected for worker in received["workers"]), server.url


def size_of(sent) -> int:
    return sum(tensor.nbytes for _, tensor in sent)


@pytest.mark.parametrize("engine_name", ENGINES)
def test_each_tensor_is_sent_once_to_all_workers_of_all_servers(monkeypatch, tmp_path, engine_name: str) -> None:
    with fleet(monkeypatch, tmp_path, engine_name, workers=(1, 2, 1, 3)) as (engine, servers):
        for version in range(2):
            sent = weights(version)
            engine.update_weights(sent, version)
            check(engine, servers, sent)
            assert engine.update_bytes == size_of(sent)
        assert [server.received["calls"][JOIN[engine_name]] for server in servers] == [1, 1, 1, 1]
        assert engine.lines == []


def test_the_next_bucket_is_gathered_while_one_is_sent(monkeypatch, tmp_path) -> None:
    """And no more than the next, however long that takes."""
    events: list[str] = []
    send = BroadcastDelivery._send

    async def slow(self, bucket, message, data) -> None:
        await send(self, bucket, message, data)
        await asyncio.sleep(0.3)
        events.append("end")

    def gathered():
        for place in range(12):  # four buckets
            events.append(f"tensor {place}")
            yield f"layer.{place}", torch.full((250,), float(place))

    monkeypatch.setattr(BroadcastDelivery, "_send", slow)
    with fleet(monkeypatch, tmp_path, "vllm", workers=(1, 1)) as (engine, _):
        engine.update_weights(gathered(), 0)
    assert Held.most == 2
    for number in range(2):
        end = [place for place, event in enumerate(events) if event == "end"][number]
        # That the next bucket is whole shows in the first tensor of the one after it, which is not yet copied.
        first, second = (f"tensor {3 * (number + 2) + place}" for place in range(2))
        assert first in events[:end] and second not in events[:end]


LAST = 99


@pytest.mark.parametrize(
    ("what", "bucket", "tensor"),
    [("kill", LAST, 0), ("stop", 0, 5), ("refuse", 1, 0), pytest.param("hang", 1, 0, marks=pytest.mark.slow)],
)
def test_one_that_fails_in_the_middle_fails_alone(monkeypatch, tmp_path, what: str, bucket: int, tensor: int) -> None:
    """The others get the update from its first bucket, in the same call, and the line names the one that failed."""
    settings = {"control_seconds": 8.0} if what == "hang" else {}
    with fleet(monkeypatch, tmp_path, "vllm", workers=(1, 2, 1, 2), **settings) as (engine, servers):
        engine.update_weights(weights(0), 0)
        sent = weights(1)
        bucket = min(bucket, sum(1 for _ in buckets(sent, BUCKET, torch.device("cpu"))) - 1)
        servers[1].behave(Misdeed(what, bucket, tensor))
        engine.update_weights(sent, 1)
        check(engine, [server for server in servers if server is not servers[1]], sent)
        named = [line for line in engine.lines if servers[1].url in line]
        assert named and all(line.isprintable() for line in engine.lines)
        assert not any(server.url in line for server in servers if server is not servers[1] for line in engine.lines)
        assert engine.fleet.servers[1].falls == 1


@pytest.mark.parametrize("what", ["kill", "refuse"])
def test_one_that_fails_in_the_middle_fails_alone_with_sglang(monkeypatch, tmp_path, what: str) -> None:
    with fleet(monkeypatch, tmp_path, "sglang", workers=(1, 2, 1, 2)) as (engine, servers):
        servers[1].behave(Misdeed(what, 1, 0))
        sent = weights(1)
        engine.update_weights(sent, 1)
        check(engine, [server for server in servers if server is not servers[1]], sent)


@pytest.mark.slow
def test_one_that_says_what_is_not_so_is_found(monkeypatch, tmp_path) -> None:
    """It answers that it has a bucket, and has received nothing: nobody can tell, until each is served by itself."""
    with fleet(monkeypatch, tmp_path, "vllm", control_seconds=6.0) as (engine, servers):
        servers[2].behave(Misdeed("lie", 1))
        sent = weights(1)
        engine.update_weights(sent, 1)
        check(engine, [servers[0], servers[1], servers[3]], sent)
        servers[2].behave(None)
        sent = weights(2)
        engine.update_weights(sent, 2)
        check(engine, servers, sent)
        assert engine.update_bytes == size_of(sent)  # they share again


def test_two_that_die_at_different_times(monkeypatch, tmp_path) -> None:
    with fleet(monkeypatch, tmp_path, "vllm", workers=(1, 1, 1, 1, 1)) as (engine, servers):
        servers[0].behave(Misdeed("kill", 0, 1))
        servers[3].behave(Misdeed("kill", 1, 0))
        sent = weights(1)
        engine.update_weights(sent, 1)
        check(engine, [servers[1], servers[2], servers[4]], sent)


def test_one_that_comes_back_joins_at_the_next_forming(monkeypatch, tmp_path) -> None:
    with fleet(monkeypatch, tmp_path, "vllm", lives=2) as (engine, servers):
        engine.update_weights(weights(0), 0)
        servers[2].behave(Misdeed("kill", 1, 0))
        engine.update_weights(weights(1), 1)
        servers[2].next_life()
        servers[2].start()
        sent = weights(2)
        engine.update_weights(sent, 2)
        check(engine, servers, sent)
        assert engine.update_bytes == size_of(sent)


def test_one_that_joins_while_others_are_given_weights_gets_them_next(monkeypatch, tmp_path) -> None:
    """It is up before the update ends, and is given the same weights in the rollout, or the next with all."""
    with fleet(monkeypatch, tmp_path, "vllm", waiting=1) as (engine, servers):
        sent = weights(1)

        def given():
            for place, each in enumerate(sent):
                if place == 6:
                    servers[3].start()
                yield each

        engine.update_weights(given(), 1)
        check(engine, servers[:3], sent)
        engine._passes.weights = sent
        engine._passes.deliver(engine._delivery, engine._loop.call(engine.fleet.find_stale()), engine.fleet)
        check(engine, servers, sent)
        for version in (2, 3):
            sent = weights(version)
            engine.update_weights(sent, version)
            check(engine, servers, sent)
            assert engine.update_bytes == size_of(sent)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_whatever_they_do(monkeypatch, tmp_path, seed: int) -> None:
    """Random servers do random things at random places of three updates."""
    numbers = random.Random(seed)
    workers = [numbers.randint(1, 3) for _ in range(5)]
    with fleet(monkeypatch, tmp_path, "vllm", workers=workers) as (engine, servers):
        ended = set()
        for version in range(3):
            sent = weights(10 * seed + version, tensors=numbers.randint(2, 20))
            deeds = {}
            for server in numbers.sample(servers, numbers.randint(0, 2)):
                if server not in ended and len(ended) + len(deeds) < 3:
                    what = numbers.choice(["kill", "stop", "refuse"])
                    deeds[server] = Misdeed(what, numbers.randint(0, 1), numbers.randint(0, 1))
            for server in servers:
                if server not in ended:
                    server.behave(deeds.get(server))
            engine.update_weights(sent, version)
            ended |= {server for server, deed in deeds.items() if deed.what in ("kill", "stop")}
            ready = {server.url for server in engine.fleet.ready}
            # A misdeed that no tensor came to did not happen.
            assert all(server.url in ready for server in servers if server not in deeds and server not in ended)
            check(engine, [server for server in servers if server.url in ready], sent)
            ended = {server for server in ended if server.url not in ready}


def test_servers_that_cannot_share_a_process_group_get_one_each(monkeypatch, tmp_path) -> None:
    with fleet(monkeypatch, tmp_path, "vllm", control_seconds=4.0) as (engine, servers):
        for server in servers[1:3]:
            server.behave(Misdeed("alone"))
        for version in range(2):
            sent = weights(version)
            engine.update_weights(sent, version)
            check(engine, servers, sent)
            assert engine.update_bytes == 4 * size_of(sent)
        assert sum("cannot share a process group" in line for line in engine.lines) == 1


def test_weights_that_are_there_once_cannot_be_sent_again(monkeypatch, tmp_path) -> None:
    with fleet(monkeypatch, tmp_path, "vllm", workers=(1, 1)) as (engine, servers):
        servers[0].behave(Misdeed("kill", 1, 0))
        with pytest.raises(RolloutError, match="no weights to send again"):
            engine.update_weights(iter(weights(0)), 0)


class At:
    """A server as far as its address goes."""

    def __init__(self, host: str) -> None:
        self.endpoint = (host, 8000)


def test_servers_here_and_elsewhere_share_the_address_that_both_reach() -> None:
    delivery = BroadcastDelivery(RemoteConfig(), None, "gloo")
    here, also_here, there, other = (At(name) for name in ("here", "also here", "there", "elsewhere"))
    delivery._addresses = {here: "127.0.0.1", also_here: "::1", there: "10.0.0.5", other: "192.168.1.5"}
    for servers, divided in [
        ([here], [("127.0.0.1", [here])]),
        ([here, there, also_here], [("10.0.0.5", [here, there, also_here])]),
        ([there, other], [("10.0.0.5", [there]), ("192.168.1.5", [other])]),
        ([here, also_here], [("127.0.0.1", [here]), ("::1", [also_here])]),
    ]:
        delivery.servers = servers
        assert delivery._divided() == divided


def test_a_server_on_loopback_and_one_on_the_network_share(monkeypatch, tmp_path) -> None:
    """One listens on loopback alone, the other on this machine's address in the network, if it has one."""
    try:
        outer = address_towards("192.0.2.1", 9)
    except OSError:
        outer = "127.0.0.1"
    with fleet(monkeypatch, tmp_path, "vllm", workers=(1, 1), hosts=("127.0.0.1", outer)) as (engine, servers):
        sent = weights(1)
        engine.update_weights(sent, 1)
        check(engine, servers, sent)
        assert engine.update_bytes == size_of(sent)
