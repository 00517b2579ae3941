"""After every kind of update a server answers with the new weights, tied and untied; and an update that breaks hangs nobody."""

import asyncio
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from support.engine_models import greedy_responses, logits_of, logprob_of, new_model, requests, weights_of

from megatron_fork.errors import RolloutError
from megatron_fork.rollout.servers.sglang import SglangServer
from megatron_fork.rollout.servers.vllm import VllmServer
from megatron_fork.rollout.servers.wire import ServerFault

ALL = ["vllm tied", "vllm untied", "sglang tied", "sglang untied"]
TIED = ["vllm tied", "sglang tied"]


@pytest.mark.parametrize("sync", ["disk", "gloo"])
@pytest.mark.parametrize("server", ALL, indirect=True, scope="session")
def test_greedy_output_is_hugging_faces(server, remote, sync: str) -> None:
    engine = remote(server.engine, [server.server.url], sync=sync)
    asked = requests(8, temperature=0.0, max_tokens=24)
    seen = []
    # The last are the first again, the same prompts each time: a cache of prefixes would answer for other weights.
    for version, seed in enumerate((1, 2, 3, 1)):
        model = new_model(tied=server.tied, seed=seed)
        engine.update_weights(weights_of(model), version)
        answers = {completion.number: list(completion.tokens) for completion in engine.generate(asked)}
        assert answers == greedy_responses(model, asked)
        seen.append(answers)
    assert seen[0] == seen[3] != seen[1]
    assert engine.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("server", ALL, indirect=True, scope="session")
def test_weights_come_in_many_buckets(server, remote, monkeypatch) -> None:
    from megatron_fork.rollout.servers import weight_passes as module

    sizes = []

    def small(weights, limit, device, **how):
        for bucket in _buckets(weights, 100_000, device, **how):
            sizes.append(sum(tensor.nbytes for _, tensor in bucket))
            yield bucket

    _buckets = module.buckets
    monkeypatch.setattr(module, "buckets", small)
    engine = remote(server.engine, [server.server.url], sync="gloo")
    model = new_model(tied=server.tied, seed=4)
    engine.update_weights(weights_of(model), 0)
    assert len(sizes) > 5 and sum(sizes) == engine.update_bytes == sum(p.nbytes for p in model.parameters())
    asked = requests(4, temperature=0.0, max_tokens=16)
    assert {c.number: list(c.tokens) for c in engine.generate(asked)} == greedy_responses(model, asked)


@pytest.mark.parametrize("server", TIED, indirect=True, scope="session")
def test_update_while_responses_are_drawn(server, remote) -> None:
    """They go on with the new weights, and each token's log-prob is that of the weights that its span names."""
    engine = remote(server.engine, [server.server.url], sync="gloo")
    models = [new_model(tied=True, seed=seed) for seed in (1, 2)]
    engine.update_weights(weights_of(models[0]), 0)
    asked = requests(40, max_tokens=110)
    asked[0] = replace(asked[0], max_tokens=1)  # soon there, while all others are drawn
    running = engine.generate(asked)
    completions = [next(running)]
    engine.update_weights(weights_of(models[1]), 1)
    completions += running
    assert sorted(completion.number for completion in completions) == [request.number for request in asked]
    both = 0
    for completion in completions:
        request = asked[completion.number]
        both += len(completion.versions) > 1
        assert completion.versions[0].start == 0 and completion.versions[-1].end == len(completion.tokens)
        for version, start, end in completion.versions:
            expected = logprob_of(logits_of(models[version], request, completion.tokens), completion.tokens)
            found = torch.tensor(completion.logprob).double()
            torch.testing.assert_close(found[start:end], expected[start:end], rtol=0, atol=1e-4)
    assert both > 0, "the update came after all responses had ended"


@pytest.mark.parametrize("server", TIED, indirect=True, scope="session")
def test_a_slow_look_at_a_server_does_not_end_the_pause_of_an_update(server, remote, monkeypatch) -> None:
    """Only a server that is down is woken up by those who look after it: no update can have paused it."""
    updated, first, woken = threading.Event(), threading.Event(), []
    kind = VllmServer if server.engine == "vllm" else SglangServer
    is_healthy, resume = kind.is_healthy, kind.resume

    async def slow_at_first(self) -> bool:
        if not first.is_set():
            first.set()
            await asyncio.to_thread(updated.wait, 3.0)
        return await is_healthy(self)

    async def noted(self) -> None:
        woken.append(self.state)
        await resume(self)

    monkeypatch.setattr(kind, "is_healthy", slow_at_first)
    monkeypatch.setattr(kind, "resume", noted)
    engine = remote(server.engine, [server.server.url], sync="disk", health_seconds=0.1)
    assert first.wait(5.0), "nobody looks after the servers"
    engine.update_weights(weights_of(new_model(tied=True, seed=1)), 0)
    updated.set()
    time.sleep(0.5)  # for the slow look to go on
    assert woken == ["down"]


@pytest.mark.slow
@pytest.mark.parametrize("sync", ["disk", "gloo"])
@pytest.mark.parametrize("server", TIED, indirect=True, scope="session")
def test_a_server_that_hangs_in_an_update(server, remote, sync: str) -> None:
    """It is given up in time; when it moves again it is taken back, with the current weights."""
    engine = remote(server.engine, [server.server.url], sync=sync, control_seconds=8.0)
    engine.update_weights(weights_of(new_model(tied=True, seed=1)), 0)
    server.server.signal(signal.SIGSTOP)
    wake = threading.Timer(15.0, lambda: server.server.signal(signal.SIGCONT))
    wake.start()
    model = new_model(tied=True, seed=5)
    try:
        engine.update_weights(weights_of(model), 1)
    finally:
        wake.join()
    asked = requests(4, temperature=0.0, max_tokens=16)
    assert {c.number: list(c.tokens) for c in engine.generate(asked)} == greedy_responses(model, asked)


@pytest.mark.slow
@pytest.mark.parametrize("server", TIED, indirect=True, scope="session")
def test_a_server_whose_trainer_vanished_takes_another(server, remote) -> None:
    """The first trainer is gone between two buckets; nothing of its session stands in the way of the next."""
    first = remote(server.engine, [server.server.url], sync="gloo")
    first.update_weights(weights_of(new_model(tied=True, seed=1)), 0)
    stale = list(first.fleet.servers)
    first._loop.call(first._delivery.start(stale, "first"))
    first._loop.call(first._delivery.send(weights_of(new_model(tied=True, seed=2))[:3]))
    first.close()

    model = new_model(tied=True, seed=6)
    second = remote(server.engine, [server.server.url], sync="gloo")
    second.update_weights(weights_of(model), 0)
    asked = requests(4, temperature=0.0, max_tokens=16)
    assert {c.number: list(c.tokens) for c in second.generate(asked)} == greedy_responses(model, asked)


@pytest.mark.parametrize("server", ["vllm tied"], indirect=True, scope="session")
def test_a_tied_head_without_repacking_is_stale(server, remote, monkeypatch) -> None:
    """What the probe is for: vLLM's own reload on the CPU leaves the packed head of the old embedding, without an error."""

    async def without_repacking(self: VllmServer, folder: str, label: str) -> None:
        await self.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})
        await self.post("/update_weight_version", {"new_version": label})

    monkeypatch.setattr(VllmServer, "reload", without_repacking)
    engine = remote("vllm", [server.server.url], sync="disk", verify_weights="never")
    model = new_model(tied=True, seed=7)
    engine.update_weights(weights_of(model), 0)
    (completion,) = engine.generate(requests(1))
    expected = logprob_of(logits_of(model, requests(1)[0], completion.tokens), completion.tokens)
    assert float((torch.tensor(completion.logprob) - expected).abs().max()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("server", TIED, indirect=True, scope="session")
def test_none_left(server, remote) -> None:
    """After its patience the engine says which servers there were and what became of them; it saved before it waited."""
    saved = []
    engine = remote(server.engine, ["http://127.0.0.1:9"], patience_seconds=3.0)
    engine._save = lambda: saved.append(time.monotonic())
    started = time.monotonic()
    with pytest.raises(RolloutError, match=r"rollout\.servers: none is ready after 3 s: http://127\.0\.0\.1:9"):
        engine.update_weights(weights_of(new_model(tied=True, seed=1)), 0)
    assert len(saved) == 1 and saved[0] - started < 2.0


@pytest.mark.parametrize("server", TIED, indirect=True, scope="session")
def test_a_route_that_is_refused_is_named(server, remote) -> None:
    engine = remote(server.engine, [server.server.url])
    with pytest.raises(ServerFault, match="/no_such_route was answered with 404"):
        engine._loop.call(engine.fleet.servers[0].post("/no_such_route"))
