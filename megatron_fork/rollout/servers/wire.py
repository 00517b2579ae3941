"""HTTP to a server that is not trusted: answers are bounded in bytes and in time, and quoted in printable characters.

`doctor` also asks here whether all servers answer, at once and within a few seconds.
"""

from __future__ import annotations

import asyncio
import os
import resource
import ssl
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, cast

import httpx
from pydantic_core import from_json

from megatron_fork.errors import KEY_VARIABLE, masked

if TYPE_CHECKING:
    from megatron_fork.rollout.servers.pace import Allowance

# Of a control route's answer; SGLang's /server_info is the longest, with about ten KiB.
_ANSWER_BYTES = 4 << 20
# And of each token that it scores: vLLM writes about 80, SGLang 40.
_BYTES_A_TOKEN = 512
# How much is read of an answer that is only quoted.
_QUOTED_BYTES = 64 << 10
_CONNECT_SECONDS = 10.0
# Servers close a connection that is idle for 5 s; using it at that moment would look like a fault.
_KEPT_SECONDS = 2.0
# Files that the rest of a run opens: shards of weights and of checkpoints, workers, the other ranks.
_OTHER_FILES = 2048
# What the HTTP client raises for a server's answers; `ValueError` for addresses in headers.
_BROKEN = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError)


class ServerFault(Exception):
    """What a server did wrong, in one line.

    `is_busy`: it asks to try later. `refused`: it says that the request is wrong. `is_void`: what it drew for the response
    cannot be right, and does not count either.
    """

    def __init__(self, message: str, *, is_busy: bool = False, refused: bool = False, is_void: bool = False) -> None:
        super().__init__(message)
        self.is_busy = is_busy
        self.refused = refused
        self.is_void = is_void


class Late(ServerFault):
    """A whole answer that did not arrive in time."""


def void(message: str) -> ServerFault:
    """A fault that voids everything the server drew for the response."""
    return ServerFault(message, is_void=True)


def quoted(sent: object, most: int = 200) -> str:
    """What a server sent, short, on one line, and without terminal escapes."""
    if isinstance(sent, bytes):
        sent = sent[:_QUOTED_BYTES].decode(errors="replace")
    try:
        text = sent if isinstance(sent, str) else repr(sent)
    except (RecursionError, ValueError):  # too deep, or of more digits than Python prints
        return f"a {type(sent).__name__}"
    # Masked before it is cut: the first half of a key would not be recognized.
    text = "".join(each if each.isprintable() else " " for each in masked(text[:_QUOTED_BYTES]))
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most] + "..."


def parsed(text: bytes, path: str, most: float = float("inf")) -> Any:
    """JSON of at most `most` elements, which are counted before it is parsed; there are fewer than bytes."""
    elements = sum(text.count(mark) for mark in (b"[", b"{", b",")) if len(text) > most else 0
    if elements > most:
        raise ServerFault(f"{path} sent JSON of {elements} elements, more than the limit of {most:.0f}")
    try:
        return from_json(
            text
        )  # twice as fast as Python's own, which took a third of the first rank's time in a rollout
    except ValueError as error:
        reason = "too deep" if "recursion" in str(error) else quoted(text, 60)
        raise ServerFault(f"{path} sent something that is not JSON: {reason}") from error


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status: int
    kind: str
    """Its content type."""
    body: bytes


class Wire:
    """Connections to one server. They follow no redirects, keep no cookies and unpack nothing."""

    def __init__(self, url: str, key: str | None, *, connections: int) -> None:
        self.http = httpx.AsyncClient(
            base_url=url,
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=connections, keepalive_expiry=_KEPT_SECONDS
            ),
            # All other limits are on the whole exchange: a slow drip of bytes would pass limits on a single read.
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            trust_env=False,
            verify=_certificates(),
        )

    async def ask(self, method: str, path: str, seconds: float, *, tokens: int = 0, **options: Any) -> Reply:
        """A whole answer of any status, within `seconds`; it may speak of so many `tokens`."""
        most = _ANSWER_BYTES + tokens * _BYTES_A_TOKEN
        try:
            async with asyncio.timeout(seconds), self.http.stream(method, path, **options) as answer:
                return Reply(answer.status_code, _kind_of(answer), await _body_of(answer, path, most))
        except TimeoutError as error:
            raise Late(f"{path} was not answered within {seconds:g} s") from error
        except _BROKEN as error:
            raise ServerFault(f"{path}: {_in_words(error)}") from error

    async def lines(self, path: str, body: dict[str, Any], allowance: Allowance) -> AsyncGenerator[bytes, None]:
        """The lines of a stream, as long as it brings tokens."""
        try:
            # One timer for the whole stream: one for each of its pieces is slow. Whoever takes the lines waits for nothing else
            # between two of them, so that the timer always ends a wait in here.
            async with allowance.in_time():
                request = self.http.build_request("POST", path, json=body)
                answer = await self.http.send(request, stream=True)
                try:
                    await _check_stream(answer, path)
                    async with aclosing(_lines_of(answer, path, allowance)) as lines:
                        async for line in lines:
                            yield line
                finally:
                    await answer.aclose()
        except TimeoutError as error:
            raise ServerFault(f"{path} sent no token, or too few, within {allowance.pace.seconds:g} s") from error
        except _BROKEN as error:
            raise ServerFault(f"{path}: {_in_words(error)}") from error

    async def aclose(self) -> None:
        await self.http.aclose()


@cache
def _certificates() -> ssl.SSLContext:
    """The known authorities, read once for all servers: it takes longer than everything else that a client needs."""
    return httpx.create_ssl_context(trust_env=False)


def connections_allowed(wanted: int) -> int:
    """How many of `wanted` connections this process may open; raises its soft limit of open files as far as that needs.

    Each request in progress has a connection, and systems often start processes with a soft limit of 1,024 files.
    """
    soft, hard = (sys.maxsize if most == resource.RLIM_INFINITY else most for most in _file_limits())
    others = min(_OTHER_FILES, hard // 2)
    if soft < min(hard, wanted + others):
        soft = min(hard, wanted + others)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, _file_limits()[1]))
    return max(1, min(wanted, soft - others))


def _file_limits() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def refusal(path: str, status: int, text: object) -> ServerFault:
    is_busy = status in (408, 429, 503)
    return ServerFault(
        f"{path} was answered with {status}: {quoted(text)}",
        is_busy=is_busy,
        refused=400 <= status < 500 and not is_busy,
    )


def broken_off(path: str, error: object) -> ServerFault:
    """The fault for an error that comes inside a stream."""
    if isinstance(error, dict) and type(error.get("code")) is int:
        return refusal(path, error["code"], error.get("message"))
    return ServerFault(f"{path} broke off: {quoted(error)}")


async def _check_stream(answer: httpx.Response, path: str) -> None:
    """Raise `ServerFault` with the start of an answer that is no stream."""
    if answer.status_code == 200 and _kind_of(answer) not in ("text/html", "application/json"):
        return
    start = await _body_of(answer, path, _QUOTED_BYTES, cut=True)
    if answer.status_code != 200:
        raise refusal(path, answer.status_code, start)
    raise ServerFault(f"{path} sent {quoted(_kind_of(answer), 40)}, not a stream: {quoted(start)}")


async def _lines_of(answer: httpx.Response, path: str, allowance: Allowance) -> AsyncGenerator[bytes, None]:
    held, searched = bytearray(), 0
    async with aclosing(_bytes_of(answer, path)) as chunks:
        async for chunk in chunks:
            allowance.receive(len(chunk), path)
            held += chunk
            while (end := held.find(b"\n", searched)) >= 0:
                line = bytes(held[:end])
                del held[: end + 1]
                searched = 0
                yield line.removesuffix(b"\r")
            searched = len(held)


async def _body_of(answer: httpx.Response, path: str, most: int, *, cut: bool = False) -> bytes:
    """The whole body; one that is longer than `most` is a fault, or is `cut`."""
    body = bytearray()
    async with aclosing(_bytes_of(answer, path)) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > most and not cut:
                raise ServerFault(f"{path} was answered with more than {most} bytes")
            if len(body) > most:
                break
    return bytes(body)


async def _bytes_of(answer: httpx.Response, path: str) -> AsyncGenerator[bytes, None]:
    packed = answer.headers.get("content-encoding", "identity")
    if packed.lower() != "identity":
        raise ServerFault(f"{path} sent {quoted(packed, 40)} bytes, which were not asked for")
    async with aclosing(cast(AsyncGenerator[bytes, None], answer.aiter_raw())) as chunks:
        async for chunk in chunks:
            yield chunk


def _kind_of(answer: httpx.Response) -> str:
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower()


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__} {quoted(str(error))}".strip()


def server_states(urls: Sequence[str], *, seconds: float = 3.0) -> dict[str, str]:
    """For every address whether its `/health` answers a run: `healthy`, or what is wrong in a few words."""

    async def ask(url: str) -> str:
        try:
            async with aclosing(Wire(url.rstrip("/"), os.environ.get(KEY_VARIABLE), connections=1)) as wire:
                status = (await wire.ask("GET", "/health", seconds)).status
        except Late:
            return f"no answer in {seconds:g} seconds"
        except (ServerFault, httpx.InvalidURL) as error:
            return f"cannot be reached: {masked(str(error))}"
        return "healthy" if status == 200 else f"answers /health with {status}"

    async def ask_all() -> list[str]:
        return await asyncio.gather(*(ask(url) for url in urls))

    return dict(zip(urls, asyncio.run(ask_all()), strict=True))
