"""An engine on the trainer's own GPUs holds memory in turns: it sleeps while the policy trains, and wakes with new weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from megatron_fork.errors import RolloutError

# vLLM's: weights are dropped, not kept in main memory, since the next ones are others.
_DROP_ALL = 2


class Sleeper(Protocol):
    """What vLLM's engine offers."""

    def sleep(self, level: int) -> object: ...

    def wake_up(self, tags: list[str]) -> object: ...


class SleepMode:
    """Whether the engine sleeps, and the order in which its memory goes and comes back."""

    def __init__(self, engine: Sleeper, *, can_sleep: bool) -> None:
        """`can_sleep` is False where the platform has no sleep mode: the engine then keeps its memory."""
        self._engine = engine
        self._can_sleep = can_sleep
        self._sleeps = False

    def begin(self) -> None:
        """Give back the memory of weights and cache."""
        if self._can_sleep and not self._sleeps:
            self._engine.sleep(level=_DROP_ALL)
            self._sleeps = True

    @contextmanager
    def ended_by_weights(self) -> Iterator[None]:
        """The weights' memory is there inside, to be filled; the cache's comes after, when no copies of weights are left."""
        if self._sleeps:
            self._engine.wake_up(tags=["weights"])
        yield
        if self._sleeps:
            self._engine.wake_up(tags=["kv_cache"])
            self._sleeps = False

    def refuse_requests(self) -> None:
        """Raises `RolloutError` for requests to an engine that has no weights."""
        if self._sleeps:
            raise RolloutError(
                "the engine sleeps since its last rest, and has no weights", hint="update its weights before requests"
            )
