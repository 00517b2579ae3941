"""One rollout server: its state as rank 0 sees it, and the calls that each engine implements."""

from __future__ import annotations

import asyncio
import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from megatron_fork.errors import KEY_VARIABLE, masked
from megatron_fork.rollout.config import RemoteConfig, RolloutConfig
from megatron_fork.rollout.pending import PendingRequest, StreamChunk
from megatron_fork.rollout.servers.arrival import Held
from megatron_fork.rollout.servers.pace import Allowance, Pace
from megatron_fork.rollout.servers.routed import ExpertsShape
from megatron_fork.rollout.servers.wire import (
    ServerFault,
    Wire,
    broken_off,
    connections_allowed,
    parsed,
    quoted,
    refusal,
)
from megatron_fork.serving import Backend, Message

State = Literal["down", "stale", "ready"]
# JSON elements of a control route's answer.
_ELEMENTS = 100_000
_ELEMENTS_A_TOKEN = 20
# Workers of one kind of parallelism.
_MOST_WORKERS = 4096


@dataclass(frozen=True)
class BroadcastAddress:
    """Where the workers of a server meet rank 0, the first of `size` ranks; their own begin with `offset`."""

    address: str
    port: int
    name: str
    backend: Backend
    offset: int
    size: int
    timeout: float


class Server(ABC):
    """A server and what is known about it.

    down: it does not answer, or answers nonsense. stale: it is healthy and needs the run's weights. ready: it draws responses.
    """

    pulse = "/health"
    """A route that the server answers while its workers wait for weights."""

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
        self.failures = 0  # times that it went down or had foreign weights since its tokens last counted
        self.pace = Pace(config.idle_seconds, config.stream_interval)
        self.experts: ExpertsShape | None = None
        """What it must say of every token, where the run replays its routing."""
        self.wire = Wire(self.url, os.environ.get(KEY_VARIABLE), connections=config.requests_per_server)

    def __str__(self) -> str:
        return masked(self.url)

    @property
    def endpoint(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def is_given_up(self) -> bool:
        """Whether it gets no requests until the next weights: it would load the present ones and fail again, forever."""
        return self.failures >= self.config.attempts

    def count_failure(self, reason: str) -> None:
        """It went down or has foreign weights; it is given up if that happens too often before a token of it counts."""
        self.failures += 1
        self.reason = reason
        if self.is_given_up:
            self.state = "down"
            self.reason = f"given up after {self.failures} failures without a token that counts, the last: {reason}"

    # What each engine implements.

    @abstractmethod
    def chunks(self, pending: PendingRequest, stop_tokens: Sequence[int]) -> AsyncGenerator[StreamChunk, None]:
        """Draw the rest of a request, at most up to one of `stop_tokens`; raises `ServerFault` if it breaks off."""

    @abstractmethod
    async def stop_all(self) -> None:
        """End every request that the server works on; their streams end with the tokens so far."""

    @abstractmethod
    async def workers(self) -> int:
        """Number of ranks that receive weights."""

    @abstractmethod
    async def join(self, rendezvous: BroadcastAddress) -> None:
        """Have the server's workers join a transfer group; returns when they have."""

    async def leave(self, rendezvous: BroadcastAddress) -> None:  # noqa: B027
        """Have the workers forget a transfer group, if they do not do so when they join the next."""

    @abstractmethod
    def store_prefixes(self, rendezvous: BroadcastAddress) -> list[str]:
        """Prefixes under which the workers' group uses the store, from the outermost to the innermost."""

    @abstractmethod
    async def begin_update(self) -> None:
        """Open an update session; one that another trainer left open is ended first."""

    @abstractmethod
    async def receive(self, rendezvous: BroadcastAddress, message: Message) -> None:
        """Have the workers receive and load one bucket; returns when they have."""

    @abstractmethod
    async def end_update(self, label: str) -> None:
        """Close the session: the weights are `label` from now on."""

    @abstractmethod
    async def reload(self, folder: str, label: str) -> None:
        """Load a Hugging Face folder: the weights are `label` from now on."""

    async def take_messages(self, folder: str, label: str) -> None:
        """Load the messages in a folder, which may be changes: the weights are `label` from now on."""
        raise ServerFault(f"a {type(self).__name__} takes no changes of weights", refused=True)

    @abstractmethod
    async def name_weights(self, label: str) -> None:
        """The weights that it has are `label` from now on."""

    async def held_types(self) -> list[tuple[str, str]]:
        """(tensor, dtype) of what its workers can say checksums of; raises `ServerFault` if they say none."""
        raise ServerFault(f"a {type(self).__name__} says no checksums of its weights", refused=True)

    async def held(self, tensors: int) -> list[Held]:
        """What its workers hold of `tensors` tensors, with checksums."""
        raise ServerFault(f"a {type(self).__name__} says no checksums of its weights", refused=True)

    @abstractmethod
    async def forget_prefixes(self) -> None:
        """Drop the prefix cache, which old weights wrote."""

    @abstractmethod
    async def weight_label(self) -> str:
        """Label of the weights that the server says it has."""

    @abstractmethod
    async def models(self) -> list[str]:
        """Names and folders under which the server says it has its model."""

    @abstractmethod
    async def pause(self) -> None:
        """Pause the requests in progress; their cache is computed again when they go on."""

    @abstractmethod
    async def resume(self) -> None:
        """Continue the paused requests."""

    async def logprobs_of(self, tokens: Sequence[int], first: int) -> list[float]:
        """Log-probs at temperature 1 of the tokens from place `first` on, which is above 0; draws nothing that counts.

        Raises `ServerFault`; `refused` where the server, or its kind, scores no such tokens.
        """
        raise ServerFault(f"a {type(self).__name__} scores no given tokens", refused=True)

    # What is the same for all engines.

    async def hold(self) -> None:
        """`pause`, and expect no token until `release`."""
        self.pace.hold()
        await self.pause()

    async def release(self) -> None:
        await self.resume()
        self.pace.go_on()

    async def is_healthy(self) -> bool:
        """Whether `/health` answers; if it does not, and the server was never ready, `reason` is set to its answer."""
        try:
            reply = await self.wire.ask("GET", "/health", self.config.health_timeout_seconds)
            if reply.status == 200:
                return True
            reason = str(refusal("/health", reply.status, reply.body))
        except ServerFault as fault:
            reason = str(fault)
        if self.version < 0:
            self.reason = reason
        return False

    async def has_pulse(self) -> bool:
        """Whether it is there, whatever its workers are doing."""
        try:
            return (await self.wire.ask("GET", self.pulse, self.config.health_timeout_seconds)).status == 200
        except ServerFault:
            return False

    async def call(self, method: str, path: str, *, tokens: int = 0, **options: Any) -> Any:
        """JSON answer of a control route, or its text; raises `ServerFault` unless it succeeded.

        `tokens`: how many the answer may speak of, besides what such a route says.
        """
        reply = await self.wire.ask(method, path, self.config.control_seconds, tokens=tokens, **options)
        if reply.status != 200:
            raise refusal(path, reply.status, reply.body)
        if reply.kind == "text/html":
            raise ServerFault(f"{path} was answered with a page: {quoted(reply.body)}")
        if "json" not in reply.kind:
            return quoted(reply.body)
        answer = parsed(reply.body, path, _ELEMENTS + tokens * _ELEMENTS_A_TOKEN)
        if isinstance(answer, dict) and answer.get("error"):
            raise ServerFault(f"{path} was answered with an error: {quoted(answer['error'])}")
        return answer

    async def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """POST to a control route; an answer that reports no success is a fault as well."""
        answer = await self.call("POST", path, json=body or {})
        if isinstance(answer, dict) and answer.get("success") is False:
            raise ServerFault(f"{path} did not succeed: {quoted(answer.get('message'))}")
        return answer

    async def field_of(self, path: str, name: str) -> Any:
        """One field of a control route's answer."""
        answer = await self.call("GET", path)
        if not isinstance(answer, dict) or name not in answer:
            raise ServerFault(f"{path} was answered without {name}: {quoted(answer)}")
        return answer[name]

    async def events(
        self, path: str, body: dict[str, Any], allowance: Allowance
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON objects of a server-sent stream, up to its end mark."""
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
    """The product of the worker counts that a server reports."""
    product = 1
    for count in counts:
        if type(count) is not int or not 1 <= count <= _MOST_WORKERS:
            raise ServerFault(f"it says that it has {quoted(count)} workers")
        product *= count
    return product


def within_open_files(config: RolloutConfig, say: Callable[[str], None]) -> RemoteConfig:
    """The settings, with no more requests at a time than this process may open connections for; fewer are said."""
    remote, servers = config.remote, len(config.servers)
    allowed = max(1, connections_allowed(remote.requests_per_server * servers) // servers)
    if allowed >= remote.requests_per_server:
        return remote
    say(
        f"the limit of open files leaves {allowed} of rollout.remote.requests_per_server="
        f"{remote.requests_per_server} requests for each of {servers} servers: raise it with `ulimit -Hn`"
    )
    return replace(remote, requests_per_server=allowed)
