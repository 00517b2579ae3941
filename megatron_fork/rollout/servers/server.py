"""One rollout server: its state as rank 0 sees it, and the calls that every engine answers in its own words."""

from __future__ import annotations

import asyncio
import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from megatron_fork.errors import KEY_VARIABLE, masked
from megatron_fork.rollout.config import RemoteConfig
from megatron_fork.rollout.pending import PendingRequest, StreamChunk
from megatron_fork.rollout.servers.pace import Allowance, Pace
from megatron_fork.rollout.servers.wire import ServerFault, Wire, broken_off, parsed, quoted, refusal
from megatron_fork.serving import Backend

State = Literal["down", "stale", "ready"]
# Of a control route's answer.
_ELEMENTS = 100_000
# Of one kind of parallelism.
_MOST_WORKERS = 4096


@dataclass(frozen=True)
class BroadcastAddress:
    """Where the workers of a server meet rank 0, which is the first of `size` ranks."""

    address: str
    port: int
    name: str
    backend: Backend
    size: int
    timeout: float


class Server(ABC):
    """A server and what is known of it.

    down: nothing answers, or nonsense. stale: healthy, with weights that are not the run's. ready: draws responses.
    """

    def __init__(self, url: str, config: RemoteConfig, vocabulary: int) -> None:
        self.url = url.rstrip("/")
        self.config = config
        self.vocabulary = vocabulary
        self.state: State = "down"
        self.load = 0  # outstanding tokens
        self.running: dict[int, asyncio.Task[None]] = {}
        self.strikes = 0
        self.rests_until = 0.0
        self.reason = "it has not answered yet"
        self.version = -1
        self.falls = 0  # how often it went down
        self.setbacks = 0  # falls and foreign weights since tokens of it last counted
        self.pace = Pace(config.idle_seconds, config.stream_interval)
        self.wire = Wire(self.url, os.environ.get(KEY_VARIABLE), connections=config.requests_per_server)

    def __str__(self) -> str:
        return masked(self.url)

    @property
    def endpoint(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def is_given_up(self) -> bool:
        """Until the next weights; it would take the present ones, and fall again, without end."""
        return self.setbacks >= self.config.attempts

    def set_back(self, reason: str) -> None:
        """It fell, or has foreign weights: too often, without a token that counts in between, and it is given up."""
        self.setbacks += 1
        self.reason = reason
        if self.is_given_up:
            self.state = "down"
            self.reason = f"given up after {self.setbacks} setbacks without a token that counts, the last: {reason}"

    # What each engine says in its own words.

    @abstractmethod
    def chunks(self, pending: PendingRequest, stop_tokens: Sequence[int]) -> AsyncGenerator[StreamChunk, None]:
        """Draw the rest of a request, to one of `stop_tokens` at the latest; raises `ServerFault` where it breaks off."""

    @abstractmethod
    async def stop_all(self) -> None:
        """End every request that the server works on; their streams end with what there is."""

    @abstractmethod
    async def workers(self) -> int:
        """Ranks that receive weights."""

    @abstractmethod
    async def join(self, rendezvous: BroadcastAddress) -> None:
        """Have the server's workers join a transfer group; returns when they have."""

    @abstractmethod
    def store_prefixes(self, rendezvous: BroadcastAddress) -> list[str]:
        """Under which the workers' group looks into the store, from the outermost name to the innermost."""

    @abstractmethod
    async def begin_update(self) -> None:
        """Open an update session; one that another trainer left open is given up first."""

    @abstractmethod
    async def receive(
        self, rendezvous: BroadcastAddress, names: list[str], dtypes: list[str], shapes: list[list[int]]
    ) -> None:
        """Have the workers receive and load one bucket; returns when they have."""

    @abstractmethod
    async def end_update(self, label: str) -> None:
        """Close the session: the weights are `label` from now on."""

    @abstractmethod
    async def reload(self, folder: str, label: str) -> None:
        """Load a Hugging Face folder: the weights are `label` from now on."""

    @abstractmethod
    async def forget_prefixes(self) -> None:
        """Drop the cache of prefixes, which old weights wrote."""

    @abstractmethod
    async def weight_label(self) -> str:
        """Which weights the server says it has."""

    @abstractmethod
    async def pause(self) -> None:
        """Hold the requests in progress where they are; their cache is written anew when they go on."""

    @abstractmethod
    async def resume(self) -> None:
        """Go on with them."""

    # What is the same for all.

    async def hold(self) -> None:
        """`pause`, and expect no token until it is released."""
        self.pace.hold()
        await self.pause()

    async def release(self) -> None:
        await self.resume()
        self.pace.go_on()

    async def is_healthy(self) -> bool:
        """Where it is not, and was never ready, the reason is what it said."""
        try:
            reply = await self.wire.ask("GET", "/health", self.config.health_timeout_seconds)
            ailment = "" if reply.status == 200 else str(refusal("/health", reply.status, reply.body))
        except ServerFault as fault:
            ailment = str(fault)
        if ailment and self.version < 0:
            self.reason = ailment
        return not ailment

    async def call(self, method: str, path: str, **options: Any) -> Any:
        """JSON answer of a control route, or its text; raises `ServerFault` on anything but success."""
        reply = await self.wire.ask(method, path, self.config.control_seconds, **options)
        if reply.status != 200:
            raise ServerFault(f"{path} was answered with {reply.status}: {quoted(reply.body)}")
        if reply.kind == "text/html":
            raise ServerFault(f"{path} was answered with a page: {quoted(reply.body)}")
        if "json" not in reply.kind:
            return quoted(reply.body)
        answer = parsed(reply.body, path, _ELEMENTS)
        if isinstance(answer, dict) and answer.get("error"):
            raise ServerFault(f"{path} was answered with an error: {quoted(answer['error'])}")
        return answer

    async def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """`call` for what must be done then: an answer that says it was not is a fault as well."""
        answer = await self.call("POST", path, json=body or {})
        if isinstance(answer, dict) and answer.get("success") is False:
            raise ServerFault(f"{path} did not succeed: {quoted(answer.get('message'))}")
        return answer

    async def told(self, path: str, name: str) -> Any:
        """One field of what a control route tells."""
        answer = await self.call("GET", path)
        if not isinstance(answer, dict) or name not in answer:
            raise ServerFault(f"{path} does not tell {name}: {quoted(answer)}")
        return answer[name]

    async def events(
        self, path: str, body: dict[str, Any], allowance: Allowance
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON objects of a server-sent stream, until it says that it is done."""
        async with contextlib.aclosing(self.wire.lines(path, body, allowance)) as lines:
            async for line in lines:
                data = line.removeprefix(b"data:").strip()
                if not line.startswith(b"data:") or not data:
                    continue
                if data == b"[DONE]":
                    return
                event = parsed(data, path, allowance.elements)
                if not isinstance(event, dict):
                    raise ServerFault(f"{path} sent something that is not an object: {quoted(data)}")
                if event.get("error") is not None:
                    raise broken_off(path, event["error"])
                yield event
        raise ServerFault(f"{path}: the stream ended early")

    async def close(self) -> None:
        await self.wire.aclose()


def workers_in(*counts: object) -> int:
    """The product of the counts that a server tells of itself."""
    product = 1
    for count in counts:
        if type(count) is not int or not 1 <= count <= _MOST_WORKERS:
            raise ServerFault(f"it says that it has {quoted(count)} workers")
        product *= count
    return product
