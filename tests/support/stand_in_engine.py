"""A server that speaks vLLM's or SGLang's dialect without a model: right in form, and wrong on demand.

It draws tokens at random, with log-probs that a model could have, and takes every weight update. `fault` answers requests for
responses in its place, `control` those of other routes. See `server_faults` for what can go wrong.
"""

import asyncio
import collections
import contextlib
import json
import multiprocessing
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

GENERATION = {"vllm": "/inference/v1/generate", "sglang": "/generate"}
STOP = 1


@dataclass
class Said:
    """What one event says; values may be anything that JSON can hold."""

    tokens: Any = field(default_factory=list)
    logprobs: Any = field(default_factory=list)
    finish: Any = None
    versions: Any = None


@dataclass
class Exchange:
    """One request, its right answer, and the connection to answer on."""

    engine: str
    prompt: list[int]
    room: int
    interval: int
    label: str
    right: list[Said]
    writer: asyncio.StreamWriter
    asked: dict[str, Any] = field(default_factory=dict)
    """The request's body."""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def begin(self, status: str = "200 OK", kind: str = "text/event-stream", *more: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", "transfer-encoding: chunked", *more]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def event(self, event: Any) -> None:
        await self.chunk(b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n")

    async def end(self) -> None:
        await self.event(b"[DONE]")
        await self.send(b"0\r\n\r\n")

    async def say(self, said: list[Said]) -> None:
        await self.tell(self.events_of(said))

    async def tell(self, events: list[Any]) -> None:
        await self.begin()
        for event in events:
            await self.event(event)
        await self.end()

    def events_of(self, said: list[Said]) -> list[Any]:
        """In the engine's words."""
        seen, events = 0, []
        for each in said:
            seen += len(each.tokens) if isinstance(each.tokens, list) else 0
            events.append(_vllm_event(each) if self.engine == "vllm" else _sglang_event(each, seen))
        if self.engine == "vllm":
            events.append({"choices": [], "usage": {"completion_tokens": seen}})
        return events


Fault = Callable[[Exchange], Awaitable[None]]


def _vllm_event(said: Said) -> Any:
    content = said.logprobs
    if isinstance(content, list):
        content = [{"token": "token_id:0", "logprob": value, "top_logprobs": []} for value in content]
    choice = {"index": 0, "token_ids": said.tokens, "logprobs": {"content": content}, "finish_reason": said.finish}
    return {"request_id": "1", "choices": [choice | {"stop_reason": None, "weight_versions": said.versions}]}


def _sglang_event(said: Said, seen: int) -> Any:
    finish = {"type": said.finish, "matched": STOP} if isinstance(said.finish, str) else said.finish
    entries = said.logprobs
    if isinstance(entries, list):
        tokens = said.tokens if isinstance(said.tokens, list) else []
        entries = [[value, tokens[place] if place < len(tokens) else 0, None] for place, value in enumerate(entries)]
    about = {"id": "1", "finish_reason": finish, "prompt_tokens": 3, "completion_tokens": seen}
    about |= {"output_token_logprobs": entries, "input_token_logprobs": []}
    if said.versions is not None:
        about["weight_versions"] = said.versions
    return {"text": "", "output_ids": said.tokens, "meta_info": about}


def right_answer(seed: int, room: int, interval: int, label: str, vocabulary: int) -> list[Said]:
    """Some end by a stop token, others for their length."""
    numbers = random.Random(seed)
    length = numbers.randint(1, 2 * room)
    tokens = [numbers.randrange(STOP + 1, vocabulary) for _ in range(min(length, room))]
    if length < room:
        tokens[-1] = STOP
    logprobs = [-numbers.expovariate(1.0) for _ in tokens]
    said = [
        Said(tokens[start : start + interval], logprobs[start : start + interval])
        for start in range(0, len(tokens), interval)
    ]
    spans = [{"version": label, "start": 0, "end": len(tokens)}]
    return [*said[:-1], replace(said[-1], finish="stop" if tokens[-1] == STOP else "length", versions=spans)]


class StandIn:
    """The server, in a thread of this process."""

    def __init__(self, engine: str, *, vocabulary: int = 135, fault: Fault | None = None) -> None:
        self.engine, self.vocabulary, self.fault = engine, vocabulary, fault
        self.control: dict[str, Fault] = {}
        self.label = "default"
        self.asked = 0
        self.calls: collections.Counter[str] = collections.Counter()
        self._connections: set[asyncio.Task] = set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._connections.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            try:
                while await self._answer(reader, writer):
                    pass
            finally:
                self._connections.discard(task)
                writer.transport.abort() if writer.is_closing() else writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection may be used again."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        path = head[0].split(" ")[1].partition("?")[0]
        lengths = [int(line.split(":")[1]) for line in head if line.lower().startswith("content-length")]
        body = json.loads(await reader.readexactly(sum(lengths)) or b"{}")
        if path != GENERATION[self.engine]:
            self.calls[path] += 1
            exchange = Exchange(self.engine, [], 0, 1, self.label, [], writer)
            if path in self.control:
                await self.control[path](exchange)
                return False
            answer = json.dumps(self._told(path, body)).encode()
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(answer)}\r\n\r\n"
            await exchange.send(head.encode() + answer)
            return True
        self.asked += 1
        sampling = body["sampling_params"]
        room = sampling["max_tokens" if self.engine == "vllm" else "max_new_tokens"]
        prompt = body["token_ids" if self.engine == "vllm" else "input_ids"]
        seed = sampling["seed" if self.engine == "vllm" else "sampling_seed"]
        right = right_answer(seed, room, sampling["stream_interval"], self.label, self.vocabulary)
        exchange = Exchange(self.engine, prompt, room, sampling["stream_interval"], self.label, right, writer, body)
        if self.fault is None:
            await exchange.say(right)
            return True
        await self.fault(exchange)
        return False

    def _told(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/update_weight_version":
            self.label = body["new_version"]
        if path in ("/weight_info", "/model_info"):
            return {"weight_version": self.label, "model_path": "theirs"}
        if path == "/v1/models":
            return {"data": [{"id": "theirs"}]}
        return {"success": True, "message": "", "world_size": 1, "tp_size": 1}


def _serve_until_told(engine: str, name: str, line: Any) -> None:
    from support import server_faults

    server = StandIn(engine, fault=server_faults.ALL.get(name))
    server.control = server_faults.CONTROL.get(name, {})
    line.send(server.url)
    line.recv()
    line.send(server.asked)
    server.close()


@contextmanager
def apart(engine: str, name: str) -> Iterator[tuple[str, Callable[[], int]]]:
    """In a process of its own, with the fault of that name: its address, and what ends it and counts its requests."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_serve_until_told, args=(engine, name, theirs), daemon=True
    )
    process.start()

    def asked() -> int:
        ours.send(None)
        return ours.recv()

    try:
        yield ours.recv(), asked
    finally:
        process.kill()
        process.join()
