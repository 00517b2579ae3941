"""Many servers in one process that speak vLLM's dialect and send tokens as engines do: some to every response, tick by tick.

There is no model: an event's bytes are prepared once and sent again and again, so that thousands of streams cost this process
little, and what a client spends on them can be measured. Lengths follow from the seeds of the requests.
"""

import asyncio
import json
import math
import multiprocessing
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

GENERATE = "/inference/v1/generate"
STOP = 1


@dataclass(frozen=True)
class Decoding:
    """How the servers decode."""

    servers: int
    interval: int = 32
    """Tokens that arrive together."""
    events_a_second: float = 2000.0
    """Of all servers together; 0: as fast as they go."""
    shortest: int = 32
    median: float = 5500.0
    sigma: float = 0.7
    longest: int = 20480
    vocabulary: int = 20_000
    """Ids that are drawn."""

    @property
    def bytes_a_token(self) -> float:
        """On the wire."""
        return len(DecodingServers(self)._whole[0]) / self.interval

    def length(self, seed: int) -> int:
        """Log-normal, cut at both ends."""
        drawn = self.median * math.exp(self.sigma * random.Random(seed).gauss(0, 1))
        return round(min(self.longest, max(self.shortest, drawn)))


class DecodingServers:
    """All servers, on ports of their own and one event loop."""

    def __init__(self, decoding: Decoding) -> None:
        self.decoding = decoding
        self.labels = dict.fromkeys(range(decoding.servers), "default")
        self.streams: list[_Stream] = []
        numbers = random.Random(0)
        entries = [(numbers.randrange(2, decoding.vocabulary), -numbers.expovariate(1.0)) for _ in range(1 << 12)]
        self._entries = [(token, _float32(value)) for token, value in entries]
        self._whole = [
            _event(self._entries[first : first + decoding.interval], None, None)
            for first in range(0, len(self._entries), decoding.interval)
        ]

    async def start(self) -> list[str]:
        urls = []
        for place in range(self.decoding.servers):
            answer = self._answering(place)
            server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
            urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        return urls

    async def decode(self) -> None:
        """One event to every stream in turn, for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            for stream in list(self.streams):
                if stream.left <= self.decoding.interval:
                    stream.write(self._last(stream))
                    self.streams.remove(stream)
                    stream.ended.set()
                else:
                    stream.write(self._whole[stream.left // self.decoding.interval % len(self._whole)])
                    stream.left -= self.decoding.interval
                if self.decoding.events_a_second:
                    due = max(due + 1 / self.decoding.events_a_second, loop.time() - 0.1)
                    if due > loop.time() + 0.002:
                        await asyncio.sleep(due - loop.time())
            await asyncio.sleep(0 if self.streams else 0.01)

    def _last(self, stream: "_Stream") -> bytes:
        entries = self._entries[: stream.left]
        if stream.reason == "stop":
            entries = [*entries[:-1], (STOP, -0.5)]
        spans = [{"version": stream.label, "start": 0, "end": stream.length}]
        return _event(entries, stream.reason, spans) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"

    def _answering(self, place: int) -> Callable[..., Any]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                    path = head[0].split(" ")[1].partition("?")[0]
                    count = sum(int(line.split(":")[1]) for line in head if line.lower().startswith("content-length"))
                    body = json.loads(await reader.readexactly(count) or b"{}")
                    if path == GENERATE:
                        await self._draw(place, body["sampling_params"], writer)
                    else:
                        writer.write(self._told(place, path, body))
                        await writer.drain()
            except (asyncio.IncompleteReadError, OSError):
                pass
            finally:
                writer.close()

        return answer

    async def _draw(self, place: int, sampling: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        wanted, room = self.decoding.length(sampling["seed"]), sampling["max_tokens"]
        length = min(wanted, room)
        stream = _Stream(writer, self.labels[place], length, length, "stop" if wanted < room else "length")
        stream.ended = asyncio.Event()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        self.streams.append(stream)
        await stream.ended.wait()
        await writer.drain()

    def _told(self, place: int, path: str, body: dict[str, Any]) -> bytes:
        if path == "/update_weight_version":
            self.labels[place] = body["new_version"]
        told = {"success": True, "message": "", "world_size": 1, "weight_version": self.labels[place]}
        answer = json.dumps(told).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(answer)}\r\n\r\n"
        return head.encode() + answer


@dataclass(eq=False)
class _Stream:
    """A response that is being sent."""

    writer: asyncio.StreamWriter
    label: str
    length: int
    left: int
    reason: str
    ended: asyncio.Event = None  # type: ignore[assignment]

    def write(self, data: bytes) -> None:
        self.writer.write(data)


def _float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def _event(entries: Sequence[tuple[int, float]], reason: str | None, spans: Any) -> bytes:
    """An event in a chunk of its own, with the fields that vLLM 0.32 sends for token ids and their log-probs."""
    content = []
    for token, value in entries:
        one = {"token_id": token, "logprob": value, "rank": 1}
        content.append(one | {"top_logprobs": [one]})
    choice = {
        "index": 0,
        "finish_reason": reason,
        "stop_reason": None,
        "token_ids": [token for token, _ in entries],
        "routed_experts": None,
        "sampling_mask": None,
        "weight_versions": spans,
        "logprobs": {"content": content},
    }
    event = {"request_id": "0123456789abcdef0123456789abcdef", "usage": None, "output_mode": "tokens"}
    data = b"data: " + json.dumps(event | {"choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _serve(decoding: Decoding, line: Any) -> None:
    async def serve() -> None:
        servers = DecodingServers(decoding)
        line.send(await servers.start())
        await servers.decode()

    asyncio.run(serve())


@contextmanager
def decoding_servers(decoding: Decoding) -> Iterator[list[str]]:
    """The servers' addresses; they run in a process of their own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(decoding, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()
