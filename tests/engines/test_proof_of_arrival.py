"""A real server proves which weights it holds: every tensor is seen, and what differs is named with the server."""

import pytest
import torch
from support.engine_models import greedy_responses, new_model, requests, weights_of

from megatron_fork.errors import RolloutError
from megatron_fork.rollout.servers import weight_passes
from megatron_fork.rollout.servers.shared_transfer import SharedTransfer
from megatron_fork.rollout.servers.vllm import VllmServer
from megatron_fork.rollout.weights import packed
from megatron_fork.serving import described

ALL = ["vllm tied", "vllm untied", "sglang tied", "sglang untied"]
NAME = "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """What the run would print."""
    said: list[str] = []
    made = weight_passes.WeightPasses.__init__

    def noted(self, control, bucket_bytes, stop_point, say) -> None:
        made(self, control, bucket_bytes, stop_point, said.append)

    monkeypatch.setattr(weight_passes.WeightPasses, "__init__", noted)
    return said


@pytest.mark.parametrize("sync", ["disk", "gloo"])
@pytest.mark.parametrize("server", ALL, indirect=True, scope="session")
def test_every_tensor_is_seen(server, remote, lines, sync: str) -> None:
    engine = remote(server.engine, [server.server.url], sync=sync, verify_weights="always")
    for version in range(2):
        weights = weights_of(new_model(tied=server.tied, seed=version))
        engine.update_weights(weights, version)
        (one,) = engine.fleet.servers
        parts = engine._loop.call(one.held(len(weights)))
        assert {part.tensor for part in parts} == {name for name, _ in weights}
        assert ("lm_head.weight" in {part.place for part in parts}) or server.tied
    assert lines == []


@pytest.mark.parametrize("what", ["flipped bit", "skipped tensor"])
@pytest.mark.parametrize("server", ["vllm tied", "sglang untied"], indirect=True, scope="session")
def test_what_did_not_arrive_is_named(server, remote, lines, monkeypatch, what: str) -> None:
    """The first time; then it is sent all weights again, and draws with them."""
    engine = remote(server.engine, [server.server.url], verify_weights="always")
    engine.update_weights(weights_of(new_model(tied=server.tied, seed=1)), 0)
    send, spoilt = SharedTransfer.send, []

    async def send_other(self, message, data) -> None:
        if spoilt:
            return await send(self, message, data)
        spoilt.append(what)
        place = message.names.index(NAME)
        bucket, start = [], 0
        for name, dtype, shape in zip(message.names, message.dtypes, message.shapes, strict=True):
            size = torch.Size(shape).numel() * getattr(torch, dtype).itemsize
            bucket.append((name, data[start : start + size].clone().view(getattr(torch, dtype)).view(shape)))
            start += size
        if what == "skipped tensor":
            del bucket[place]
        else:
            bucket[place][1].view(-1).view(torch.int32)[77] ^= 1 << 3
        return await send(self, described(bucket), packed(bucket))

    monkeypatch.setattr(SharedTransfer, "send", send_other)
    model = new_model(tied=server.tied, seed=2)
    engine.update_weights(weights_of(model), 1)
    (line,) = lines
    assert server.server.url in line and f"it holds other weights than were sent: {NAME}" in line
    asked = requests(4, temperature=0.0, max_tokens=16)
    assert {c.number: list(c.tokens) for c in engine.generate(asked)} == greedy_responses(model, asked)


@pytest.mark.parametrize("server", ["vllm tied"], indirect=True, scope="session")
def test_a_stale_tied_head_is_named(server, remote, monkeypatch) -> None:
    """The reload of vLLM itself leaves, on the CPU, the packed head of the old embedding, without an error."""

    async def without_repacking(self: VllmServer, folder: str, label: str) -> None:
        await self.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})
        await self.name_weights(label)

    monkeypatch.setattr(VllmServer, "reload", without_repacking)
    engine = remote("vllm", [server.server.url], sync="disk", attempts=2)
    with pytest.raises(RolloutError, match=r"lm_head\.weight \(tied to model\.embed_tokens\.weight\)"):
        engine.update_weights(weights_of(new_model(tied=True, seed=7)), 0)


@pytest.mark.parametrize("sync", ["disk", "gloo"])
@pytest.mark.parametrize("server", ["vllm tied", "vllm untied"], indirect=True, scope="session")
def test_changes_alone_make_the_next_weights(server, remote, lines, sync: str) -> None:
    engine = remote("vllm", [server.server.url], sync=sync, verify_weights="always", delta_updates=True)
    model = new_model(tied=server.tied, seed=3)
    asked = requests(4, temperature=0.0, max_tokens=16)
    generator = torch.Generator().manual_seed(1)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    for version in range(3):
        engine.update_weights(weights_of(model), version)
        assert (engine.update_bytes < whole / 5) == (version > 0)
        assert {c.number: list(c.tokens) for c in engine.generate(asked)} == greedy_responses(model, asked)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter[torch.rand(parameter.shape, generator=generator) < 0.02] *= 1.5
    assert lines == []
