"""Waiting on an event loop for what blocks, and ending what nobody waits for any more."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from megatron_fork.serving import TransferGroup


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
