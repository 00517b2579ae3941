"""A server is used only when it has proved by checksums that it holds what was sent; what differs is named, and sent again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.receiving_servers import Misdeed, fleet_of

from megatron_fork.errors import RolloutError
from megatron_fork.rollout.servers import event_loop, remote, weight_passes
from megatron_fork.rollout.servers.arrival import Arrival, Held, held_in
from megatron_fork.rollout.servers.wire import Late, ServerFault
from megatron_fork.rollout.weights import buckets
from megatron_fork.serving import checksum


def weights(seed: int) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(f"layer.{place}", torch.randn(20 + place, 16, generator=generator).bfloat16()) for place in range(9)]


@pytest.fixture
def fleet(monkeypatch, tmp_path: Path):
    for module in (remote, event_loop):
        monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(
        weight_passes, "buckets", lambda given, limit, device, **how: buckets(given, 3000, device, **how)
    )
    return lambda workers, **settings: fleet_of(tmp_path, "vllm", workers=workers, **settings)


@pytest.mark.parametrize("what", ["flip", "skip"])
@pytest.mark.parametrize("verify", ["first", "always"])
def test_a_tensor_that_is_not_what_was_sent_is_named_and_sent_again(fleet, what: str, verify: str) -> None:
    with fleet((1, 2), verify_weights=verify) as (engine, servers):
        version = 0
        if verify == "always":
            engine.update_weights(weights(0), version)
            version = 1
        servers[1].behave(Misdeed(what, 1, 2))
        sent = weights(1)
        engine.update_weights(sent, version)
        wrong = list(buckets(sent, 3000, torch.device("cpu")))[1][2][0]
        (line,) = engine.lines
        assert servers[1].url in line and f"it holds other weights than were sent: {wrong}" in line
        assert servers[1].received["label"] == "unchecked"
        assert [server.url for server in engine.fleet.ready] == [servers[0].url]
        engine._passes.deliver(engine._delivery, engine._loop.call(engine.fleet.find_stale()), engine.fleet)
        assert len(engine.fleet.ready) == 2


def test_without_the_check_it_goes_unseen(fleet) -> None:
    """What the check is for: the server says that it has the weights."""
    with fleet((1,), verify_weights="never") as (engine, servers):
        servers[0].behave(Misdeed("flip", 1, 2))
        engine.update_weights(weights(1), 0)
        assert engine.lines == [] and servers[0].received["label"] == engine.fleet.label
        assert "weight_checksums" not in str(servers[0].received["calls"])


def test_one_that_never_holds_them_is_left_out_with_the_tensors_name(fleet) -> None:
    with fleet((1,), attempts=2) as (engine, servers):
        servers[0].behave(Misdeed("flip always", 0, 1))
        with pytest.raises(RolloutError, match=r"none can be used: .*it holds other weights than were sent: layer\.1"):
            engine.update_weights(weights(1), 0)


def test_one_that_reports_nothing_is_used_with_a_line(fleet) -> None:
    with fleet((1,)) as (engine, servers):
        servers[0].behave(Misdeed("silent"))
        for version in range(2):
            engine.update_weights(weights(version), version)
        (line,) = engine.lines
        assert servers[0].url in line and "rollout.remote.verify_weights=never" in line


def test_one_that_does_not_answer_in_time_has_not_proved_anything(fleet) -> None:
    """Unlike one that says it cannot: it gets no requests until it is found healthy, and is asked again then."""

    async def late() -> list[tuple[str, str]]:
        raise Late("it did not answer in time")

    with fleet((1, 2)) as (engine, servers):
        slow = engine.fleet.servers[1]
        slow.held_types = late
        engine.update_weights(weights(0), 0)
        (line,) = engine.lines
        assert servers[1].url in line and "it did not answer in time" in line
        assert [server.url for server in engine.fleet.ready] == [servers[0].url]
        del slow.held_types
        engine._passes.deliver(engine._delivery, engine._loop.call(engine.fleet.find_stale()), engine.fleet)
        assert len(engine.fleet.ready) == 2 and len(engine.lines) == 1


def held(tensor: torch.Tensor, row: int, rows: int, **changed) -> Held:
    part = tensor[row : row + rows]
    fields = {
        "tensor": "a",
        "place": "a",
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "row": row,
        "column": 0,
        "rows": rows,
        "columns": tensor.shape[1],
        "checksum": checksum(part, row=row),
    }
    return Held(**(fields | changed))


def test_parts_of_workers_are_added_and_must_cover_the_tensor() -> None:
    tensor = torch.randn(8, 16).bfloat16()
    arrival = Arrival()
    arrival.add([("a", tensor)])
    halves = [held(tensor, 0, 4), held(tensor, 4, 4)]
    assert arrival.fault_of(halves) == arrival.fault_of([*halves, halves[0]]) == ""
    assert "a" in arrival.fault_of(halves[:1])
    assert "its workers hold different ones" in arrival.fault_of([*halves, held(tensor, 0, 4, checksum=5)])
    tied = [held(tensor, row, 4, place="lm_head.weight", checksum=row) for row in (0, 4)]
    assert arrival.fault_of([*halves, *tied]) == "it holds other weights than were sent: lm_head.weight (tied to a)"
    assert arrival.unseen([]) == ["a"]


def test_what_a_kernel_padded_is_not_compared_and_is_said_to_be_unseen() -> None:
    """SGLang pads layers whose width its kernels cannot divide; less than the tensor is no padding."""
    tensor = torch.randn(8, 24)
    padded = torch.nn.functional.pad(tensor, (0, 8))
    arrival = Arrival()
    arrival.add([("a", tensor), ("b", tensor)])
    seen = replace(held(tensor, 0, 8), tensor="b", place="b")
    assert arrival.fault_of([held(padded, 0, 8), seen]) == ""
    assert arrival.unseen([held(padded, 0, 8), seen]) == ["a"]
    assert arrival.fault_of([held(tensor[:, :23].contiguous(), 0, 8), seen]) != ""


def test_an_engine_of_another_type_is_compared_in_its_own() -> None:
    tensor, arrival = torch.randn(8, 16), Arrival()
    arrival.expect([("a", "bfloat16"), ("a", "float32")])
    arrival.add([("a", tensor)])
    for kind in (torch.bfloat16, torch.float32):
        assert arrival.fault_of([held(tensor.to(kind), 0, 8)]) == ""
        assert arrival.fault_of([held(tensor.to(kind) + 1, 0, 8)]) != ""


@pytest.mark.parametrize(
    "report", ["", "no", "[1]", "[[1]]", '[["a","a","float32",0,0,1.5,1,"0"]]', '{"a":1}', None, 5]
)
def test_a_report_that_is_none_is_a_fault(report: object) -> None:
    with pytest.raises(ServerFault, match=r"its report of checksums cannot be read"):
        held_in(report)


@pytest.mark.parametrize("dtype", ["save", "float8_e4m3fn", "bits8", "quint8", "int1", "float", "", "torch.float32"])
def test_a_type_that_cannot_be_compared_is_a_fault_before_anything_is_sent(dtype: str) -> None:
    arrival = Arrival()
    with pytest.raises(ServerFault, match="is of the type"):
        arrival.expect([("a", "float32"), ("a", dtype)])
    arrival.add([("a", torch.randn(8, 16))])
