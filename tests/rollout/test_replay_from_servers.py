"""What a token was drawn from and where it was routed is read from servers in their own words, and is whole or is refused."""

import base64
import io
import math
import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fleets import QUICK, WEIGHTS
from support.stand_in_engine import STOP, Exchange, StandIn
from transformers import Qwen3MoeConfig

from megatron_fork.errors import RolloutError
from megatron_fork.rollout import Completion, RemoteEngine, Request, RolloutConfig
from megatron_fork.rollout.servers import event_loop, fleet, remote
from megatron_fork.rollout.servers.routed import ExpertsShape, experts_of, of_int32, of_npy
from megatron_fork.rollout.servers.wire import ServerFault

ENGINES = ("vllm", "sglang")
SHAPE = ExpertsShape(layers=3, topk=2, experts=8)
CONFIG = Qwen3MoeConfig(vocab_size=135, num_hidden_layers=3, num_experts_per_tok=2, num_experts=8)
TOP_K = 6


def set_of(token: int) -> list[int]:
    """As a server might have drawn a token from it: a rule, so that a test knows it from the token."""
    return sorted({(token * 7 + step) % 135 for step in range(token % TOP_K)} | {token})


def routing(tokens: int, seed: int = 0) -> np.ndarray:
    scores = np.random.default_rng(seed).random((tokens, SHAPE.layers, SHAPE.experts))
    return np.argsort(scores, axis=-1)[..., : SHAPE.topk].astype(np.int32)


def npy(array: np.ndarray) -> str:
    held = io.BytesIO()
    np.save(held, array)
    return base64.b64encode(held.getvalue()).decode()


class Reporting:
    """A fault of a stand-in that is none: its right answers, with the reports that real servers add to them."""

    def __init__(
        self, *, masks: bool = True, experts: bool = False, change: Callable[[Any], None] = lambda event: None
    ):
        self.masks, self.experts, self.change = masks, experts, change
        self.sent: list[dict[str, Any]] = []

    async def __call__(self, exchange: Exchange) -> None:
        self.sent.append(exchange.asked)
        events = exchange.events_of([replace(each) for each in exchange.right])
        read = len(exchange.prompt) + sum(len(each.tokens) for each in exchange.right) - 1
        for event in events:
            (self._vllm if exchange.engine == "vllm" else self._sglang)(event, exchange.asked, read)
            self.change(event)
        await exchange.tell(events)

    def _vllm(self, event: Any, asked: dict[str, Any], read: int) -> None:
        for choice in event["choices"]:
            tokens, wanted = choice["token_ids"], asked["sampling_params"]["logprobs"]
            choice["sampling_mask"] = [set_of(token) for token in tokens] if self.masks else None
            for token, entry in zip(tokens, choice["logprobs"]["content"], strict=True):
                ids = set_of(token)
                first = [token, *(each for each in ids if each != token)]
                rest = [each for each in range(135) if each not in ids]
                entry["top_logprobs"] = [
                    {"token_id": each, "logprob": -math.log(len(ids)) if each in ids else -9999.0, "rank": place}
                    for place, each in enumerate([*first, *rest][: max(wanted, 1)])
                ]
            if choice["finish_reason"] and self.experts:
                choice["routed_experts"] = npy(routing(read).astype(np.uint8))

    def _sglang(self, event: Any, asked: dict[str, Any], read: int) -> None:
        about = event["meta_info"]
        if self.masks and asked.get("return_sampling_mask"):
            about["output_token_sampling_mask"] = [set_of(token) for token in event["output_ids"]]
            about["output_token_sampling_logprobs"] = [-0.25] * len(event["output_ids"])
        if about["finish_reason"] and self.experts and asked.get("return_routed_experts"):
            about["routed_experts"] = base64.b64encode(routing(read).tobytes()).decode()


@pytest.fixture(params=ENGINES)
def server(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    made = StandIn(request.param)
    yield made
    made.close()


@contextmanager
def engine_of(server: StandIn, folder: Path, monkeypatch, *, experts: bool = False) -> Iterator[RemoteEngine]:
    monkeypatch.setattr(fleet, "_REST_SECONDS", 0.02)
    for module in (remote, event_loop):
        monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)
    config = RolloutConfig(
        engine=server.engine, servers=[server.url], remote=QUICK, top_k=TOP_K, replay_sampling_mask=True
    )
    made = RemoteEngine(
        config, CONFIG, stop_tokens=(STOP,), folder=folder, world=None, records_experts=experts, save=lambda: None
    )
    with closing(made) as engine:
        engine.update_weights(WEIGHTS, 0)
        yield engine


def requests(count: int, **fields: Any) -> list[Request]:
    numbers = random.Random(5)
    return [
        Request(
            number,
            tuple(numbers.randrange(2, 135) for _ in range(6)),
            number + 3,
            1.0,
            12,
            **{"top_k": TOP_K, "reports_kept": True, **fields},
        )
        for number in range(count)
    ]


def check_sets(completion: Completion) -> None:
    assert completion.kept is not None
    ids = iter(completion.kept.ids)
    assert [sorted(next(ids) for _ in range(count)) for count in completion.kept.counts] == [
        set_of(token) for token in completion.tokens
    ]


def test_every_token_comes_with_what_it_was_drawn_from(server: StandIn, tmp_path: Path, monkeypatch) -> None:
    server.fault = reporting = Reporting()
    with engine_of(server, tmp_path, monkeypatch) as engine:
        completions = list(engine.generate(requests(10)))
    for completion in completions:
        check_sets(completion)
        if server.engine == "sglang":  # its other log-probs are of the whole softmax
            assert set(completion.logprob) == {-0.25}
    if server.engine == "vllm":
        assert {each["sampling_params"]["logprobs"] for each in reporting.sent} == {0}


def test_a_vllm_server_without_masks_is_asked_for_log_probs(tmp_path: Path, monkeypatch) -> None:
    server = StandIn("vllm")
    server.fault = reporting = Reporting(masks=False)
    with closing(server), engine_of(server, tmp_path, monkeypatch) as engine:
        for completion in engine.generate(requests(6)):
            check_sets(completion)
        asked = len(reporting.sent)
        for completion in engine.generate(requests(6)):
            check_sets(completion)
        assert [each["sampling_params"]["logprobs"] for each in reporting.sent[asked:]] == [
            TOP_K
        ] * 6  # it is known by now


def test_a_greedy_request_is_one_that_keeps_a_token(server: StandIn, tmp_path: Path, monkeypatch) -> None:
    """VLLM refuses temperature 0 of a server that lists what it draws from."""
    server.fault = reporting = Reporting()
    with engine_of(server, tmp_path, monkeypatch) as engine:
        greedy = [replace(request, temperature=0.0, top_k=0) for request in requests(2)]
        list(engine.generate(greedy))
    sent = reporting.sent[0]["sampling_params"]
    assert sent["top_k"] == 1 and (sent["temperature"] == 1.0 or server.engine == "sglang")


def replaced(change: Callable[[list[Any]], Any]) -> Callable[[Any], None]:
    def apply(event: Any) -> None:
        for choice in event.get("choices", []):
            choice["sampling_mask"] = change(choice["sampling_mask"])
        if "meta_info" in event:
            about = event["meta_info"]
            about["output_token_sampling_mask"] = change(about["output_token_sampling_mask"])

    return apply


WRONG_MASKS: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "one too few": (
        lambda masks: masks[1:],
        "sampling masks for|instead of|disagree|sent the sampling mask|drew token",
    ),
    "no list": (lambda masks: "all", "sampling masks for"),
    "a foreign id": (lambda masks: [[*mask, 135] for mask in masks], "sent the sampling mask"),
    "an id that is a number": (lambda masks: [[*mask, 1.0] for mask in masks], "sent the sampling mask"),
    "a null": (lambda masks: [None for _ in masks], "sent the sampling mask"),
    "an id twice": (lambda masks: [[*mask, mask[0]] for mask in masks], "that has it not, or others twice"),
    "an empty one": (lambda masks: [[] for _ in masks], "that has it not"),
}


@pytest.mark.parametrize("name", WRONG_MASKS)
def test_sets_that_cannot_be_are_refused(name: str, server: StandIn, tmp_path: Path, monkeypatch) -> None:
    change, told = WRONG_MASKS[name]
    server.fault = Reporting(change=replaced(change))
    with (
        engine_of(server, tmp_path, monkeypatch) as engine,
        pytest.raises(RolloutError, match=told) as raised,
    ):
        list(engine.generate(requests(1)))
    assert server.url in raised.value.message and "\n" not in raised.value.message


def test_log_probs_that_lack_probability_are_refused(tmp_path: Path, monkeypatch) -> None:
    """A tie at the last of top_k leaves more tokens than are asked for."""

    def shorten(event: Any) -> None:
        for choice in event["choices"]:
            for entry in choice["logprobs"]["content"]:
                entry["top_logprobs"] = [{"token_id": entry["top_logprobs"][0]["token_id"], "logprob": -0.5}]

    server = StandIn("vllm")
    server.fault = Reporting(masks=False, change=shorten)
    with (
        closing(server),
        engine_of(server, tmp_path, monkeypatch) as engine,
        pytest.raises(RolloutError, match=r"the 1 tokens that it kept have a probability of 0\.6065 together, not 1"),
    ):
        list(engine.generate(requests(1)))


def test_an_sglang_server_that_reports_nothing_is_named(tmp_path: Path, monkeypatch) -> None:
    server = StandIn("sglang")
    with (
        closing(server),
        engine_of(server, tmp_path, monkeypatch) as engine,
        pytest.raises(RolloutError, match="started for it"),
    ):
        list(engine.generate(requests(1)))


def test_every_token_comes_with_its_experts(server: StandIn, tmp_path: Path, monkeypatch) -> None:
    server.fault = Reporting(experts=True)
    asked = requests(8)
    with engine_of(server, tmp_path, monkeypatch, experts=True) as engine:
        for completion in engine.generate(asked):
            read = len(asked[completion.number].tokens) + len(completion.tokens) - 1
            assert completion.experts is not None and completion.experts.dtype == torch.int16
            assert torch.equal(completion.experts.long(), torch.from_numpy(routing(read).astype(np.int64)))


def test_a_server_that_does_not_report_its_experts_is_named(server: StandIn, tmp_path: Path, monkeypatch) -> None:
    server.fault = Reporting()
    with (
        engine_of(server, tmp_path, monkeypatch, experts=True) as engine,
        pytest.raises(RolloutError, match="--enable-return-routed-experts") as raised,
    ):
        list(engine.generate(requests(1)))
    assert server.url in raised.value.message


def test_a_response_that_broke_off_after_its_end_is_read_again_for_its_experts(
    server: StandIn, tmp_path: Path, monkeypatch
) -> None:
    """All of its tokens came, and the connection broke before the report: another server reads all but the last again."""
    reporting = Reporting(experts=True)
    turns = 0

    async def first_breaks_off(exchange: Exchange) -> None:
        nonlocal turns
        turns += 1
        if turns > 1:
            await reporting(exchange)
            return
        said = [replace(each, finish=None, versions=None) for each in exchange.right]
        events = exchange.events_of(said)
        for event in events:
            (reporting._vllm if exchange.engine == "vllm" else reporting._sglang)(event, exchange.asked, 0)
        await exchange.begin()
        for event in events:
            await exchange.event(event)
        exchange.writer.close()

    server.fault = first_breaks_off
    asked = requests(1)
    with engine_of(server, tmp_path, monkeypatch, experts=True) as engine:
        (completion,) = engine.generate(asked)
    assert turns == 2 and completion.experts is not None
    assert len(completion.experts) == len(asked[0].tokens) + len(completion.tokens) - 1
    check_sets(completion)


WRONG_EXPERTS: dict[str, tuple[Any, str]] = {
    "another model's layers": (routing(5)[:, :2], r"experts of shape \[5, 2, 2\], not \[5, 3, 2\]"),
    "a token too few": (routing(4), r"experts of shape \[4, 3, 2\]"),
    "an expert too many": (routing(5) + 1, "experts from 1 to 8 of a model that has 8"),
    "a negative one": (routing(5) - 1, "experts from -1"),
    "one twice": (np.zeros((5, 3, 2), dtype=np.int32), "the same expert twice"),
}


@pytest.mark.parametrize("name", WRONG_EXPERTS)
def test_experts_that_cannot_be_are_refused(name: str) -> None:
    array, told = WRONG_EXPERTS[name]
    with pytest.raises(ServerFault, match=told) as raised:
        experts_of(lambda: of_npy(npy(array)), SHAPE, 5)
    assert raised.value.is_void
    with pytest.raises(ServerFault):
        experts_of(lambda: of_int32(base64.b64encode(array.astype(np.int32).tobytes()).decode()), SHAPE, 5)


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.none(),
        st.integers(),
        st.text(max_size=40),
        st.binary(max_size=60).map(lambda b: base64.b64encode(b).decode()),
    )
)
def test_any_bytes_are_experts_or_a_fault(sent: Any) -> None:
    for read in (of_npy, of_int32):
        try:
            found = experts_of(lambda read=read: read(sent), SHAPE, 2)
        except ServerFault as fault:
            assert fault.is_void and "\n" not in str(fault)
        else:
            assert found.shape == (2, 3, 2)


def test_pickles_are_not_opened() -> None:
    held = io.BytesIO()
    np.save(held, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ServerFault, match="no array"):
        of_npy(base64.b64encode(held.getvalue()).decode())


def test_a_recorded_answer_of_vllm_is_read(tmp_path: Path, monkeypatch) -> None:
    """Of vLLM 0.32 with its second model runner, which served a mixture of 4 layers, 16 experts and 4 a token.

    Asked with tokens 3 to 7 at temperature 0.9, top_p 0.5 and top_k 4 for 6 tokens.
    """
    recorded = (Path(__file__).parent / "recorded" / "vllm_0.32_masks_and_experts.txt").read_bytes()

    async def replay(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(recorded.replace(b'"default"', f'"{exchange.label}"'.encode()))
        await exchange.send(b"0\r\n\r\n")

    server = StandIn("vllm", vocabulary=512)
    server.fault = replay
    config = RolloutConfig(
        engine="vllm", servers=[server.url], remote=QUICK, top_k=4, top_p=0.5, replay_sampling_mask=True
    )
    model = Qwen3MoeConfig(vocab_size=512, num_hidden_layers=4, num_experts_per_tok=4, num_experts=16)
    asked = Request(0, (3, 4, 5, 6, 7), 3, 0.9, 6, top_p=0.5, top_k=4, reports_kept=True)
    with (
        closing(server),
        closing(
            RemoteEngine(config, model, stop_tokens=(STOP,), folder=tmp_path, world=None, records_experts=True)
        ) as engine,
    ):
        engine.update_weights(WEIGHTS, 0)
        (completion,) = engine.generate([asked])
    assert list(completion.tokens) == [273, 64, 64, 64, 64, 64]
    assert completion.kept is not None and list(completion.kept.counts) == [2, 1, 1, 1, 1, 2]
    assert list(completion.kept.ids) == [64, 273, 64, 64, 64, 64, 34, 64]
    assert list(completion.logprob) == pytest.approx([-0.8534334897994995, 0.0, 0.0, 0.0, 0.0, -0.37395480275154114])
    assert completion.experts is not None and completion.experts.shape == (10, 4, 4)
    assert completion.experts[0].tolist() == [[10, 11, 12, 6], [7, 14, 2, 11], [5, 8, 11, 14], [7, 5, 3, 13]]
