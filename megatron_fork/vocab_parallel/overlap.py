"""Work that runs while the next matrix product does.

A product keeps a GPU's matrix units busy and leaves its memory half idle; sweeping a tile of logits does the opposite.
In a second stream the sweep of one tile takes what the product of the next leaves over. Rules for what is started so,
since both streams share memory: what it reads and writes must have been queued before, must live and stay unchanged
until its result is asked for; what it allocates for itself belongs to the second stream, which waits for the first at
every start. `tests/support/late.py` runs everything as late as these rules allow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

Result = TypeVar("Result")


class Lane(Protocol):
    """Where work is started beside the products."""

    def start(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Start `work` after all that has been queued; a call of the answer lets what is queued from then on wait for it."""
        ...


class SameLane:
    """At once, in order: a CPU, and a GPU whose second stream is not wanted."""

    def start(self, work: Callable[[], Result]) -> Callable[[], Result]:
        result = work()
        return lambda: result


class SecondStream:
    """In a stream of its own on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, _second_stream(device)

    def start(self, work: Callable[[], Result]) -> Callable[[], Result]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            result = work()
        done = self._stream.record_event()

        def waited() -> Result:
            torch.cuda.current_stream(self._device).wait_event(done)
            return result

        return waited


@functools.cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    """One for the process: memory that a stream has freed is kept for that stream. Its work is short, and goes first."""
    return torch.cuda.Stream(device, priority=-1)


def lane_for(device: torch.device, *, overlap: bool) -> Lane:
    """The second stream of a GPU, if it is wanted."""
    return SecondStream(device) if overlap and device.type == "cuda" else SameLane()
