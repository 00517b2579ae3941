"""The event loop that talks to the servers: its thread, and how to wait on it for blocking work and to end tasks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Coroutine
from concurrent import futures
from typing import Any, TypeVar

from megatron_fork.errors import StopRequested

T = TypeVar("T")
# Time between two calls of a stop point.
_POLL_SECONDS = 0.5


class EventLoop:
    """An event loop in a thread; `call` runs a coroutine there and waits for it."""

    def __init__(self) -> None:
        # Answers are parsed into millions of small objects. The collector would visit all modules again and again for them,
        # which took as long as the parsing.
        gc.freeze()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollout servers", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], stop_point: Callable[[], None] = lambda: None) -> T:
        """The result of `work`, which is cancelled if `stop_point` raises."""
        return self.wait(self.begin(work), stop_point)

    def begin(self, work: Coroutine[Any, Any, T]) -> futures.Future[T]:
        """Start `work` and return at once; `wait` has its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def wait(self, future: futures.Future[T], stop_point: Callable[[], None] = lambda: None) -> T:
        """The result of work that was begun, which is cancelled if `stop_point` raises."""
        try:
            while not futures.wait([future], _POLL_SECONDS).done:
                stop_point()
        except StopRequested:
            future.cancel()
            raise
        return future.result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        gc.unfreeze()


async def ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancel the tasks that still run, and fetch the errors of all: asyncio would print them otherwise."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """The result of blocking `work`, or its `RuntimeError`.

    Unlike asyncio's threads, one that waits for a server that never comes does not hold up the end of the process.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], outcome: object) -> None:
        if not future.done():
            set_outcome(outcome)

    def run() -> None:
        try:
            outcome: tuple[Callable[[Any], None], object] = (future.set_result, work())
        except RuntimeError as error:
            outcome = (future.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, daemon=True).start()
    return await future
