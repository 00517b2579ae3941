"""Seconds spent in the parts of a step."""

from __future__ import annotations

import time


class Clock:
    """Named laps; laps of the same name are added up."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Add the time since the last lap to `name`."""
        now = time.perf_counter()
        self._laps[name] = self._laps.get(name, 0.0) + now - self._last
        self._last = now

    def laps(self) -> dict[str, float]:
        """Seconds of each lap as `time/NAME`, and of the whole as `time/step`."""
        return {
            **{f"time/{name}": seconds for name, seconds in self._laps.items()},
            "time/step": self._last - self._started,
        }
