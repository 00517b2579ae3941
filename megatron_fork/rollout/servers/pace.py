"""How long a server may take: a response is not late while others come as they should, for it may be queued there.

Engines begin a request when they have memory for it, and put responses back into the queue when they run out of it. Either
may take hours; that the server works shows in what it sends for others.
At the end: waiting on the event loop for what blocks, and ending what nobody waits for any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from megatron_fork.rollout.servers.wire import ServerFault
from megatron_fork.serving import TransferGroup

# Of a stream, beside what its tokens take: headers, ids, usage.
_STREAM_BYTES = 64 << 10
# vLLM writes some 170 for a token with its log-prob, SGLang some 40.
_TOKEN_BYTES = 512
# Of an event's JSON, which takes far more memory parsed than on the wire.
_EVENT_ELEMENTS = 2000
_TOKEN_ELEMENTS = 40


class Pace:
    """Of one server. It keeps it where a stream brings its first token, or `interval` more in `seconds`."""

    def __init__(self, seconds: float, interval: int) -> None:
        self.seconds = seconds
        self.interval = interval
        self._kept = float("-inf")
        self._is_held = False

    @property
    def kept(self) -> float:
        """The event loop's time when it did so last, or was held last."""
        return _now() if self._is_held else self._kept

    def keep(self) -> None:
        self._kept = _now()

    def hold(self) -> None:
        """An update holds its requests: nothing is expected of it."""
        self._is_held = True

    def go_on(self) -> None:
        self._is_held = False
        self.keep()


class Allowance:
    """How long a stream may go on, and how much it may send, without bringing tokens."""

    def __init__(self, pace: Pace, tokens: int) -> None:
        """`tokens` is how many the request is about."""
        self.pace = pace
        self.bytes = _STREAM_BYTES + _TOKEN_BYTES * tokens
        self.elements = _EVENT_ELEMENTS + _TOKEN_ELEMENTS * tokens
        self._since = _now()
        self._has_begun = False
        self._tokens = 0
        self._received = 0

    @property
    def until(self) -> float:
        """The event loop's time; it moves while the server keeps its pace with other streams."""
        return max(self._since, self.pace.kept) + self.pace.seconds

    @asynccontextmanager
    async def in_time(self) -> AsyncGenerator[None, None]:
        """Raises `TimeoutError` in what waits in here, once `until` has come."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            if self.until > loop.time():
                timer = loop.call_at(self.until, look)
            else:
                limit.reschedule(loop.time())

        async with asyncio.timeout(None) as limit:
            timer = loop.call_at(self.until, look)
            try:
                yield
            finally:
                timer.cancel()

    def receive(self, count: int, path: str) -> None:
        self._received += count
        if self._received > self.bytes:
            raise ServerFault(f"{path} sent {self._received} bytes without a token", is_void=True)

    def renew(self, tokens: int) -> None:
        """That many tokens have come. One now and then is not enough, neither here nor as an excuse for other streams."""
        if not tokens:
            return
        self._received = 0
        self._tokens += tokens
        if self._has_begun and self._tokens < self.pace.interval:
            return
        now = _now()
        if not self._has_begun or now - self._since <= self.pace.seconds:
            self.pace.keep()
        self._has_begun, self._tokens, self._since = True, 0, now


def _now() -> float:
    return asyncio.get_running_loop().time()


async def ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancelled where they go on, and asked for their errors, which asyncio prints otherwise."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def in_daemon_thread(work: Callable[[], TransferGroup]) -> TransferGroup:
    """Unlike asyncio's threads, one that waits for a server that never comes does not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[TransferGroup] = loop.create_future()

    def run() -> None:
        try:
            group = work()
        except RuntimeError as error:
            _tell(loop, future, error=error)
        else:
            _tell(loop, future, group=group)

    threading.Thread(target=run, daemon=True).start()
    return await future


def _tell(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[TransferGroup],
    *,
    group: TransferGroup | None = None,
    error: RuntimeError | None = None,
) -> None:
    def settle() -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif group is not None:
            future.set_result(group)

    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(settle)
