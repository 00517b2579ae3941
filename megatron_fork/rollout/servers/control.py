"""Requests of rank 0, which alone talks to the servers, to the other ranks: to wait, to gather weights, to save, or to end.

All ranks gather weights together, even when a server comes back in the middle of a rollout. A wait that is longer than the
time-out of a collective needs messages in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from megatron_fork.distributed import collectives
from megatron_fork.errors import RolloutError, StopRequested

ControlRequest = Literal["wait", "weights", "save", "done", "stopped", "failed"]

# Far below any time-out of a collective.
HEARTBEAT_SECONDS = 10.0


class ControlRequests:
    """The first rank of `world` sends them, and the others follow them."""

    def __init__(self, world: collectives.Group) -> None:
        self.world = world

    @property
    def leads(self) -> bool:
        return collectives.rank(self.world) == 0

    def send(self, request: ControlRequest, message: str = "", hint: str = "") -> None:
        collectives.broadcast_object((request, message, hint), self.world)

    def follow(self, actions: dict[ControlRequest, Callable[[], None]]) -> None:
        """Follow until the work is done; raises as rank 0 does if it failed or was asked to stop."""
        while True:
            request, message, hint = collectives.broadcast_object(None, self.world)
            if request == "done":
                return
            if request == "stopped":
                raise StopRequested
            if request == "failed":
                raise RolloutError(message, hint=hint)
            if request in actions:
                actions[request]()
