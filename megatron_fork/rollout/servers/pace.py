"""How long a server may take: a response is not late while the server's other responses arrive in time, since it may be queued.

Engines begin a request when they have memory for it, and put responses back into the queue when they run out of memory. Both
may take hours; the tokens of other responses show that the server works.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from megatron_fork.rollout.servers.wire import void

# Bytes of a stream besides its tokens: headers, ids, usage.
_STREAM_BYTES = 64 << 10
# vLLM writes about 170 for a token with its log-prob, SGLang about 40.
_TOKEN_BYTES = 512
# Elements of an event's JSON, which takes far more memory parsed than on the wire.
_EVENT_ELEMENTS = 2000
_TOKEN_ELEMENTS = 40
# vLLM writes a kept token as an object with its log-prob and rank, and an expert as up to four bytes in base64.
_KEPT_BYTES, _KEPT_ELEMENTS, _EXPERT_BYTES = 100, 5, 6


class Pace:
    """When a server last kept pace: a stream brought its first token, or `interval` more tokens within `seconds`."""

    def __init__(self, seconds: float, interval: int) -> None:
        self.seconds = seconds
        self.interval = interval
        self._kept = float("-inf")
        self._is_held = False

    @property
    def kept(self) -> float:
        """The event loop's time when it last kept pace, or was last held."""
        return _now() if self._is_held else self._kept

    def keep(self) -> None:
        self._kept = _now()

    def hold(self) -> None:
        """An update holds the server's requests: no token is expected from it."""
        self._is_held = True

    def go_on(self) -> None:
        self._is_held = False
        self.keep()


class Allowance:
    """How long a stream may last, and how much it may send, without bringing tokens."""

    def __init__(self, pace: Pace, tokens: int, *, kept: int = 0, experts: int = 0) -> None:
        """`tokens`: of prompt and response together; of each, up to `kept` that it was drawn from, and its `experts`."""
        self.pace = pace
        self.bytes = _STREAM_BYTES + (_TOKEN_BYTES + _KEPT_BYTES * kept + _EXPERT_BYTES * experts) * tokens
        self.elements = _EVENT_ELEMENTS + (_TOKEN_ELEMENTS + _KEPT_ELEMENTS * kept) * tokens
        self._since = _now()
        self._has_started = False
        self._tokens = 0
        self._received = 0

    @property
    def until(self) -> float:
        """Deadline in the event loop's time; it moves while the server keeps pace with other streams."""
        return max(self._since, self.pace.kept) + self.pace.seconds

    @asynccontextmanager
    async def in_time(self) -> AsyncGenerator[None, None]:
        """Raises `TimeoutError` in the code that waits inside, once `until` has passed."""
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
            raise void(f"{path} sent {self._received} bytes without a token")

    def renew(self, tokens: int) -> None:
        """Count tokens that arrived. A single token now and then extends neither this deadline nor that of other streams."""
        if not tokens:
            return
        self._received = 0
        self._tokens += tokens
        if self._has_started and self._tokens < self.pace.interval:
            return
        now = _now()
        if not self._has_started or now - self._since <= self.pace.seconds:
            self.pace.keep()
        self._has_started, self._tokens, self._since = True, 0, now


def _now() -> float:
    return asyncio.get_running_loop().time()
