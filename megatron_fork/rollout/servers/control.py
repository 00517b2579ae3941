"""What rank 0, which alone talks to the servers, tells the other ranks meanwhile: that it is still there, or what to do.

Weights are gathered by all ranks together, also when a server comes back in the middle of a rollout; and a wait that is
longer than the time-out of a collective needs words in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from megatron_fork.distributed import collectives
from megatron_fork.errors import RolloutError, StopRequested

Order = Literal["wait", "weights", "save", "done", "stopped", "failed"]

# Far below any time-out of a collective.
HEARTBEAT_SECONDS = 10.0


class ControlRequests:
    """Given by the first rank of `world`, followed by the others."""

    def __init__(self, world: collectives.Group) -> None:
        self.world = world

    @property
    def leads(self) -> bool:
        return collectives.rank(self.world) == 0

    def give(self, order: Order, message: str = "", hint: str = "") -> None:
        collectives.broadcast_object((order, message, hint), self.world)

    def follow(self, actions: dict[Order, Callable[[], None]]) -> None:
        """Until the work is done; raises what rank 0 does where it failed, or was asked to stop."""
        while True:
            order, message, hint = collectives.broadcast_object(None, self.world)
            if order == "done":
                return
            if order == "stopped":
                raise StopRequested
            if order == "failed":
                raise RolloutError(message, hint=hint)
            if order in actions:
                actions[order]()
