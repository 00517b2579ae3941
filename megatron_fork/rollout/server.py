"""One rollout server: its state as rank 0 sees it, and the calls that every engine answers in its own words."""

from __future__ import annotations

import asyncio
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from megatron_fork.masking import KEY_VARIABLE, masked
from megatron_fork.rollout.config import RemoteConfig
from megatron_fork.rollout.draft import Draft, Piece
from megatron_fork.serving import Backend

State = Literal["down", "stale", "ready"]


@dataclass(frozen=True)
class Rendezvous:
    """Where the workers of a server meet rank 0, which is the first of `size` ranks."""

    address: str
    port: int
    name: str
    backend: Backend
    size: int
    timeout: float


class ServerFault(Exception):
    """What a server did wrong, in one line. `is_busy`: it asks for patience. `refused`: it calls the request wrong."""

    def __init__(self, message: str, *, is_busy: bool = False, refused: bool = False) -> None:
        super().__init__(message)
        self.is_busy = is_busy
        self.refused = refused


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
        key = os.environ.get(KEY_VARIABLE)
        self.http = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=config.requests_per_server),
            timeout=httpx.Timeout(config.idle_seconds, connect=10.0, pool=None),
            trust_env=False,
        )

    def __str__(self) -> str:
        return masked(self.url)

    @property
    def endpoint(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    # What each engine says in its own words.

    @abstractmethod
    def pieces(self, draft: Draft, stop_tokens: Sequence[int]) -> AsyncGenerator[Piece, None]:
        """Draw the rest of a draft, to one of `stop_tokens` at the latest; raises `ServerFault` where it breaks off."""

    @abstractmethod
    async def stop_all(self) -> None:
        """End every request that the server works on; their streams end with what there is."""

    @abstractmethod
    async def workers(self) -> int:
        """Ranks that receive weights."""

    @abstractmethod
    async def join(self, rendezvous: Rendezvous) -> None:
        """Have the server's workers join a transfer group; returns when they have."""

    @abstractmethod
    def store_prefixes(self, rendezvous: Rendezvous) -> list[str]:
        """Under which the workers' group looks into the store, from the outermost name to the innermost."""

    @abstractmethod
    async def begin_update(self) -> None:
        """Open an update session; one that another trainer left open is given up first."""

    @abstractmethod
    async def receive(
        self, rendezvous: Rendezvous, names: list[str], dtypes: list[str], shapes: list[list[int]]
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

    async def is_healthy(self) -> bool:
        try:
            answer = await self.http.get("/health", timeout=self.config.health_timeout_seconds)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    async def call(self, method: str, path: str, *, seconds: float | None = None, **options: Any) -> Any:
        """JSON answer of a control route; raises `ServerFault` on anything else."""
        limit = self.config.control_seconds if seconds is None else seconds
        try:
            answer = await self.http.request(method, path, timeout=httpx.Timeout(limit, connect=10.0), **options)
        except httpx.HTTPError as error:
            raise ServerFault(f"{path}: {_in_words(error)}") from error
        if answer.status_code != 200:
            raise ServerFault(f"{path} was answered with {answer.status_code}: {_one_line(answer.text)}")
        if "json" not in answer.headers.get("content-type", ""):
            return answer.text
        try:
            return answer.json()
        except ValueError as error:
            raise ServerFault(f"{path} was not answered in JSON") from error

    async def post(self, path: str, body: dict[str, Any] | None = None, *, seconds: float | None = None) -> Any:
        return await self.call("POST", path, json=body or {}, seconds=seconds)

    async def events(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON objects of a server-sent stream, until it says that it is done."""
        try:
            async with self.http.stream("POST", path, json=body) as answer:
                if answer.status_code != 200:
                    raise _refusal(path, answer.status_code, (await answer.aread()).decode(errors="replace"))
                async for line in answer.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        return
                    event = json.loads(line[6:])
                    if not isinstance(event, dict):
                        raise ServerFault(f"{path} sent something that is not an object: {_one_line(line)}")
                    if "error" in event:
                        raise _broken_off(path, event["error"])
                    yield event
        except httpx.HTTPError as error:
            raise ServerFault(f"{path}: {_in_words(error)}") from error
        except ValueError as error:
            raise ServerFault(f"{path} sent something that is not JSON") from error
        raise ServerFault(f"{path}: the stream ended early")

    def checked(self, piece: Piece, room: int) -> Piece:
        """A piece as it is, unless its tokens cannot be tokens; `room` is how many there may be."""
        good = (
            len(piece.tokens) == len(piece.logprob) <= room
            and all(type(token) is int and 0 <= token < self.vocabulary for token in piece.tokens)
            and all(type(value) is float and value <= 1e-3 and math.isfinite(value) for value in piece.logprob)
        )
        if not good:
            raise ServerFault("it sent tokens that are none, or log-probs that are none")
        return piece

    async def close(self) -> None:
        await self.http.aclose()


def spans_of(raw: Any) -> Sequence[tuple[str, int, int]] | None:
    """Both engines' spans of weight labels."""
    if raw is None:
        return None
    try:
        return [(str(span["version"]), int(span["start"]), int(span["end"])) for span in raw]
    except (TypeError, KeyError, ValueError) as error:
        raise ServerFault("it sent weight versions that are none") from error


def _broken_off(path: str, error: object) -> ServerFault:
    """Of an error that comes as part of a stream."""
    if isinstance(error, dict) and isinstance(error.get("code"), int):
        return _refusal(path, error["code"], str(error.get("message")))
    return ServerFault(f"{path} broke off: {_one_line(str(error))}")


def _refusal(path: str, status: int, text: str) -> ServerFault:
    is_busy = status in (408, 429, 503)
    return ServerFault(
        f"{path} was answered with {status}: {_one_line(text)}",
        is_busy=is_busy,
        refused=400 <= status < 500 and not is_busy,
    )


def _one_line(text: str) -> str:
    return " ".join(masked(text).split())[:200]


def _in_words(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__} {error}".strip()
