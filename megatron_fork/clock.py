"""Seconds spent in the parts of a step."""

from __future__ import annotations

import time


class Clock:
    """Laps under names; the same name may come again and adds up."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`."""
        now = time.perf_counter()
        self._laps[name] = self._laps.get(name, 0.0) + now - self._last
        self._last = now

    def laps(self) -> dict[str, float]:
        """Seconds under `time/NAME`, and `time/step` for the whole."""
        return {
            **{f"time/{name}": seconds for name, seconds in self._laps.items()},
            "time/step": self._last - self._started,
        }
