"""Whether servers are there, and with which weights those that were down are back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from megatron_fork.rollout.servers.server import Server
from megatron_fork.rollout.servers.wire import ServerFault

if TYPE_CHECKING:
    from megatron_fork.rollout.servers.fleet import Fleet

# Health checks that a server may miss.
_MISSES = 2


class Health:
    """Of the servers of a fleet, which it marks up and down."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._missed = dict.fromkeys(fleet.servers, 0)
        self._examining = {server: asyncio.Lock() for server in fleet.servers}

    async def check(self, server: Server) -> None:
        if server.state == "down":
            await self.examine(server)
            return
        if server.state == "stale":  # it may be in an update, which has its own time-outs
            return
        self._missed[server] = 0 if await server.is_healthy() else self._missed[server] + 1
        if self._missed[server] >= _MISSES:
            self._missed[server] = 0
            await self._fleet.mark_down(server, "it does not answer /health")

    async def examine(self, server: Server) -> None:
        """Whether a server that was down is back, and with which weights."""
        async with self._examining[server]:
            # The watcher and `find_stale` may both check; the second would wake a server that an update has paused meanwhile.
            if server.state != "down" or server.is_given_up or not await server.is_healthy():
                return
            seconds = self._fleet.config.health_timeout_seconds
            try:
                async with asyncio.timeout(seconds):
                    label = await server.weight_label()
                    await server.release()  # a weight update that broke off may have left it paused
            except (ServerFault, TimeoutError) as error:
                server.reason = str(error) or f"it did not say which weights it has within {seconds:g} s"
                return
            expected = self._fleet.label
            if label == expected and label in self._fleet.versions:
                await self._fleet.mark_ready(server)
            else:
                server.state, server.reason = "stale", f"it has the weights {label}, not {expected}"
