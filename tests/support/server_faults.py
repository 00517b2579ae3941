"""What a server can do wrong, by name: answers without an end, answers that cannot be, and control routes that fail."""

import asyncio
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from support.stand_in_engine import STOP, Exchange, Fault, Said

HOSTILE = [None, True, 0, -1, 1.5, 10**400, -1e300, "", "\x1b[31mred", [], {}, [[]], {"a": 1}, [None], "x" * 100_000]


def said(change: Callable[[list[Said], Exchange], list[Said]]) -> Fault:
    """The right answer, changed."""

    async def fault(exchange: Exchange) -> None:
        await exchange.say(change([replace(each) for each in exchange.right], exchange))

    return fault


def whole(
    exchange: Exchange, tokens: Any, *, logprobs: Any = None, finish: Any = "stop", spans: Any = None
) -> list[Said]:
    """All in one event."""
    count = len(tokens) if isinstance(tokens, list) else 0
    logprobs = [-0.5] * count if logprobs is None else logprobs
    spans = [{"version": exchange.label, "start": 0, "end": count}] if spans is None else spans
    return [Said(tokens, logprobs, finish, spans)]


def one(*fields: Any, **named: Any) -> Fault:
    """A whole answer with fields that may depend on the exchange."""

    def change(_: list[Said], exchange: Exchange) -> list[Said]:
        given = [each(exchange) if callable(each) else each for each in fields]
        return whole(
            exchange, *given, **{name: each(exchange) if callable(each) else each for name, each in named.items()}
        )

    return said(change)


def body(
    data: bytes | Callable[[Exchange], bytes], kind: str = "text/event-stream", *more: str, status: str = "200 OK"
) -> Fault:
    async def fault(exchange: Exchange) -> None:
        await exchange.begin(status, kind, *more)
        await exchange.chunk(data if isinstance(data, bytes) else data(exchange))
        await exchange.send(b"0\r\n\r\n")

    return fault


def for_ever(data: bytes, seconds: float = 0.0, status: str = "200 OK", first: bytes = b"") -> Fault:
    """Chunks of a body without an end."""

    async def fault(exchange: Exchange) -> None:
        await exchange.begin(status)
        if first:
            await exchange.chunk(first)
        while True:
            await exchange.chunk(data)
            await asyncio.sleep(seconds)

    return fault


def raw(first: bytes, then: bytes = b"", seconds: float = 0.0) -> Fault:
    """Bytes of any kind; with `then` without an end."""

    async def fault(exchange: Exchange) -> None:
        await exchange.send(first)
        while then:
            await exchange.send(then)
            await asyncio.sleep(seconds)

    return fault


def labelled(spans: Callable[[int, str], list[Any]]) -> Fault:
    """Other spans of weight versions than those that are right."""

    def change(pieces: list[Said], exchange: Exchange) -> list[Said]:
        count = sum(len(each.tokens) for each in pieces)
        return [*pieces[:-1], replace(pieces[-1], versions=spans(count, exchange.label))]

    return said(change)


def span(version: Any, start: Any, end: Any) -> dict[str, Any]:
    return {"version": version, "start": start, "end": end}


async def drips_tokens(exchange: Exchange) -> None:
    """One now and then, and never as many as are to arrive together."""
    await exchange.begin()
    count = 0
    while True:
        count += 1
        token = whole(exchange, [2], finish=None)[0]
        event = exchange.events_of([replace(token, versions=None)])[0]
        if exchange.engine == "sglang":
            event["meta_info"]["completion_tokens"] = count
        await exchange.event(event)
        await asyncio.sleep(0.15)


async def two_choices(exchange: Exchange) -> None:
    event = exchange.events_of(whole(exchange, [5, STOP]))[0]
    both = event | {"choices": event["choices"] * 2} if exchange.engine == "vllm" else [event, event]
    await exchange.tell([both])


def event_with(path: str, value: Any) -> Fault:
    """A right answer but for one place of its first event, which is named as in `choices.0.token_ids`."""

    async def fault(exchange: Exchange) -> None:
        events = exchange.events_of(whole(exchange, [5, STOP]))
        place, *names = events[0], *path.split(".")
        for name in names[:-1]:
            place = place[int(name) if isinstance(place, list) else name]
        place[int(names[-1]) if isinstance(place, list) else names[-1]] = value
        await exchange.tell(events)

    return fault


def of_engine(**by_engine: Fault) -> Fault:
    async def fault(exchange: Exchange) -> None:
        await by_engine[exchange.engine](exchange)

    return fault


async def silent(exchange: Exchange) -> None:
    await asyncio.sleep(3600.0)


async def closes(exchange: Exchange) -> None:
    exchange.writer.close()


async def cut_off(exchange: Exchange) -> None:
    """In the middle of a chunk."""
    await exchange.begin()
    await exchange.send(b"ffff\r\ndata: {")
    exchange.writer.close()


BOMB = gzip.compress(b"data: {}\n\n" * (8 << 20))
PIECE = b"x" * (1 << 16)
DEEP = b"[" * 100_000
# Events that are right, but bring nothing.
NO_CHOICE = b'data: {"choices": [{"index": 0, "token_ids": [], "logprobs": null, "finish_reason": null}]}\n\n'
NO_IDS = (
    b'data: {"output_ids": [], "meta_info": {"finish_reason": null, "completion_tokens": 0, '
    b'"output_token_logprobs": []}}\n\n'
)

# What an engine says in its own words, and what any server may send.
WORDS: dict[str, Fault] = {
    "labels of weights that the run did not send": labelled(lambda n, label: [span("another run:7", 0, n)]),
    "a gap in the spans of versions": labelled(lambda n, label: [span(label, 0, 0), span(label, 1, n + 1)]),
    "overlapping spans of versions": labelled(lambda n, label: [span(label, 0, n), span(label, n - 1, n)]),
    "spans of versions beyond the tokens": labelled(lambda n, label: [span(label, 0, n + 1)]),
    "no spans of versions, but a list": labelled(lambda n, label: []),
    "spans of versions that are numbers": labelled(lambda n, label: [span(7, 0, n)]),
    "spans of versions at places that are none": labelled(lambda n, label: [span(label, float("nan"), 1e400)]),
    "two choices in one answer": two_choices,
    "tokens that drip": drips_tokens,
    "events without tokens, slowly": of_engine(vllm=for_ever(NO_CHOICE, 0.02), sglang=for_ever(NO_IDS, 0.02)),
    "events without tokens, as fast as they go": of_engine(
        vllm=for_ever(NO_CHOICE * 500), sglang=for_ever(NO_IDS * 500)
    ),
    "null for the choices": of_engine(vllm=event_with("choices", None), sglang=event_with("meta_info", None)),
    "a number for the choices": of_engine(vllm=event_with("choices", 5), sglang=event_with("meta_info", 5)),
    "a number for the choice": of_engine(vllm=event_with("choices.0", 5), sglang=event_with("output_ids", 5)),
    "null for the tokens": of_engine(
        vllm=event_with("choices.0.token_ids", None), sglang=event_with("output_ids", None)
    ),
    "null for the log-probs": of_engine(
        vllm=event_with("choices.0.logprobs", None), sglang=event_with("meta_info.output_token_logprobs", None)
    ),
    "a text for the count of tokens": of_engine(
        vllm=event_with("choices.0.logprobs.content", "2"), sglang=event_with("meta_info.completion_tokens", "2")
    ),
    "infinity for the count of tokens": of_engine(
        vllm=event_with("choices.0.logprobs.content.0", float("inf")),
        sglang=event_with("meta_info.completion_tokens", float("inf")),
    ),
}
WIRE: dict[str, Fault] = {
    "comments that keep the connection alive": for_ever(b": ping\n\n", 0.02),
    "blank data lines": for_ever(b"data:\n\n", 0.02),
    "bytes that drip": for_ever(b"d", 0.02),
    "an endless line": for_ever(PIECE, first=b"data: "),
    "an endless line of JSON": for_ever(b"[]," * 20_000, first=b'data: {"choices": ['),
    "endless short lines": for_ever(b"x\n" * (1 << 15)),
    "an endless header line": raw(b"HTTP/1.1 200 OK\r\nx: ", PIECE),
    "endless headers, slowly": raw(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n", 0.02),
    "endless interim answers": raw(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 10, 0.001),
    "a status line without an end": raw(b"HTTP/1.1 200 ", b"O", 0.001),
    "an endless chunk size": raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"0" * 1000, 0.001),
    "an endless error": for_ever(PIECE, status="500 Internal Server Error"),
    "redirects to itself": body(b"", "text/plain", "location: /generate", status="307 Temporary Redirect"),
    "redirects to nowhere": body(b"", "text/plain", "location: http://[::1:99999999/\x7f", status="302 Found"),
    "bytes that unpack to a thousand times as many": body(BOMB, "text/event-stream", "content-encoding: gzip"),
    "a page of HTML": body(b"<html>\x1b[31m502 Bad Gateway</html>", "text/html; charset=zlib"),
    "a whole answer in place of a stream": body(
        lambda e: json.dumps(e.events_of(e.right)[0]).encode(), "application/json"
    ),
    "an error with status 200": body(b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'),
    "an error that is no object": body(b'data: {"error": [[["\\u001b[2J"]]]}\n\n'),
    "no content type and no events": body(b"hello\n\n", ""),
    "a stream that breaks in a chunk": cut_off,
    "a connection that closes at once": closes,
    "no HTTP": raw(b"\x00\x01\x02SSH-2.0-OpenSSH\r\n\r\n"),
    "no answer at all": silent,
    "bytes that are no UTF-8": body(b'data: {"choices": "\xff\xfe"}\n\n'),
    "JSON nested too deep": body(b'data: {"choices": ' + DEEP + b"}\n\n"),
    "JSON of a number with a million digits": body(b'data: {"choices": ' + b"9" * 1_000_000 + b"}\n\n"),
    "a number where an object is expected": body(b"data: 5\n\n"),
    "a text where an object is expected": body(b'data: "tokens"\n\n'),
    "a list where an object is expected": body(b"data: [{}]\n\n"),
}
ENDLESS = WORDS | WIRE

IMPOSSIBLE: dict[str, Fault] = {
    "a stop without a token": one([], finish="stop"),
    "a stop without a stop token": one([5, 6, 7], finish="stop"),
    "a stop token in the middle": one([5, STOP, 6, STOP], finish="stop"),
    "a stop token in an earlier event": said(
        lambda pieces, e: [Said([5, STOP], [-0.5, -0.5]), Said([6], [-0.5], "length", [span(e.label, 0, 3)])]
    ),
    "its length after 1 of the tokens asked for": one([5], finish="length"),
    "more tokens than asked for": one(lambda e: [5] * (e.room + 1), finish="length"),
    "far more tokens than asked for": one(lambda e: [5] * 20_000, finish="length"),
    "tokens after the end": said(
        lambda pieces, e: [*whole(e, [5, STOP]), Said([6], [-0.5], None, [span(e.label, 0, 3)])]
    ),
    "an end after the end": said(lambda pieces, e: [*whole(e, [5, STOP]), Said([], [], "stop", None)]),
    "a token beyond the vocabulary": one([135, STOP]),
    "a negative token": one([-1, STOP]),
    "a token that is a truth": one([True, STOP]),
    "a token that is a float": one([5.0, STOP]),
    "a token that is a text": one(["5", STOP]),
    "a token that is null": one([None, STOP]),
    "tokens that are a text": one("5", logprobs=[-0.5]),
    "fewer log-probs than tokens": one([5, STOP], logprobs=[-0.5]),
    "more log-probs than tokens": one([5, STOP], logprobs=[-0.5] * 3),
    "a log-prob that is NaN": one([5, STOP], logprobs=[float("nan"), -0.5]),
    "a log-prob of minus infinity": one([5, STOP], logprobs=[float("-inf"), -0.5]),
    "a positive log-prob": one([5, STOP], logprobs=[0.5, -0.5]),
    "a log-prob that float32 does not hold": one([5, STOP], logprobs=[-1e300, -0.5]),
    "a log-prob that stands for none": one([5, STOP], logprobs=[-9999.0, -0.5]),
    "a log-prob that is a text": one([5, STOP], logprobs=["-0.5", -0.5]),
    "a log-prob that is a truth": one([5, STOP], logprobs=[False, -0.5]),
    "a log-prob that is null": one([5, STOP], logprobs=[None, -0.5]),
    "a log-prob of 400 digits": one([5, STOP], logprobs=[-(10**400), -0.5]),
    "the prompt, then the response": one(lambda e: [*e.prompt, *[5] * e.room], finish="length"),
    "the prompt, without log-probs": one(
        lambda e: [*e.prompt, STOP], logprobs=lambda e: [None] * len(e.prompt) + [-0.5]
    ),
    "an end for an unknown reason": one([5, STOP], finish="tired"),
    "an end for a reason that is a number": one([5, STOP], finish=7),
    "an end by a text that nobody asked for": of_engine(
        vllm=event_with("choices.0.stop_reason", "\n"),
        sglang=event_with("meta_info.finish_reason.matched", "NaN happened"),
    ),
    "no end": one([5, 6], finish=None),
}

ALL = ENDLESS | IMPOSSIBLE


def json_body(value: Any) -> Fault:
    return body(value if isinstance(value, bytes) else json.dumps(value).encode(), "application/json")


# What a control route may answer, whichever it is.
CONTROLS: dict[str, Fault] = {
    "an endless answer": for_ever(PIECE),
    "an answer that drips": for_ever(b" ", 0.02),
    "no answer": silent,
    "a closed connection": closes,
    "no JSON": json_body(b"{"),
    "null": json_body(None),
    "a list": json_body([1, 2]),
    "a text": json_body("fine"),
    "an empty object": json_body({}),
    "no success": json_body({"success": False, "message": "\x1b[31mno memory"}),
    "an error in it": json_body({"error": {"message": "no"}, "weight_version": "x"}),
    "JSON nested too deep": json_body(DEEP),
    "JSON of too many elements": json_body(b"[" + b"[]," * 200_000 + b"[]]"),
    "a page of HTML": body(b"<html>", "text/html"),
    "a page in an encoding that is none": body(b"abc", "text/plain; charset=zlib"),
    "redirects to itself": body(b"", "text/plain", "location: /health", status="307 Temporary Redirect"),
    "endless interim answers": raw(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 10, 0.001),
    "another label": json_body({"weight_version": "of another run", "world_size": 1}),
    "a label that is a list": json_body({"weight_version": [["\x1b[2J"] * 50], "success": "yes"}),
    "server error": body(b"no\x1b[0m" * 1000, "text/plain", status="500 Internal Server Error"),
}
# By the route that fails, as `StandIn.control` takes it; for `apart`.
CONTROL: dict[str, dict[str, Fault]] = {
    "another label after every update": {
        "/model_info": CONTROLS["another label"],
        "/weight_info": CONTROLS["another label"],
    },
    "an endless answer to an update": {
        "/update_weights_from_disk": CONTROLS["an endless answer"],
        "/collective_rpc": CONTROLS["an endless answer"],
    },
    "health that never ends": {"/health": CONTROLS["an answer that drips"]},
}
