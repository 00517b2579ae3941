"""Tells what is wrong with a run that still goes on: each cause once, until it has gone."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_fork.config import AlertsConfig

CAUSES = ("not_finite", "entropy", "no_signal", "stalled")
_LOOKS_A_TIMEOUT = 20
# Seconds: a tiny limit must not take a core, nor a huge one be more than a thread can wait.
_SHORTEST_WAIT, _LONGEST_WAIT = 0.05, 60.0


@dataclass(frozen=True)
class Alert:
    """A cause that has appeared, or gone."""

    cause: str
    step: int
    is_raised: bool
    message: str

    def fields(self) -> dict[str, object]:
        """A line of alerts.jsonl."""
        state = "raised" if self.is_raised else "cleared"
        return {"step": self.step, "cause": self.cause, "state": state, "message": self.message}


class Alerts:
    """Looks at the metrics of each trainer step, and at the time that passes between metrics."""

    def __init__(self, config: AlertsConfig, tell: Callable[[Alert], None], *, active: set[str] | None = None) -> None:
        """`tell` is called once when a cause appears and once when it has gone; `active`: those of an earlier start."""
        self._config, self._tell = config, tell
        self._active = set(active or ())
        self._without_signal = 0
        self._step = 0
        self._lock = threading.Lock()
        self._progress = time.monotonic()
        self._closed = threading.Event()
        if config.stalled_seconds:
            threading.Thread(target=self._watch_time, name="alerts", daemon=True).start()

    def progress(self) -> None:
        """Something was recorded: the run is not stalled."""
        with self._lock:
            self._progress = time.monotonic()
            self._note("stalled", False, "the run goes on")

    def look(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Tell what is new of a step; 1 for each cause that there is now, 0 for the others."""
        config = self._config
        skipped = metrics.get("update/skipped", 0.0) + metrics.get("critic/skipped", 0.0)
        broken = [name for name in ("loss", "gradient_norm", "entropy/mean") if math.isnan(metrics.get(name, 0.0))]
        entropy = metrics.get("entropy/mean", math.inf)
        self._without_signal = self._without_signal + 1 if metrics.get("rollout/groups_with_signal", 1.0) == 0 else 0
        with self._lock:
            self._step = step
            named = f"{skipped:.0f} updates were not applied" if skipped else f"{', '.join(broken)} is NaN"
            self._note("not_finite", bool(skipped or broken), named)
            self._note(
                "entropy",
                entropy < config.entropy_below,
                f"entropy/mean={entropy:.4g} nats is below run.alerts.entropy_below={config.entropy_below}",
            )
            self._note(
                "no_signal",
                0 < config.steps_without_signal <= self._without_signal,
                f"{self._without_signal} steps in a row had no group with signal; pass rate "
                f"{metrics.get('rollout/pass_rate', math.nan):.3f}",
            )
            return {f"alerts/{cause}": float(cause in self._active) for cause in CAUSES}

    def ends(self, step: int, message: str) -> None:
        """Tell that the run ends within a step by updates that are not finite; such a step has no metrics to look at."""
        with self._lock:
            self._step = step
            self._note("not_finite", True, message)

    def close(self) -> None:
        self._closed.set()

    def _watch_time(self) -> None:
        limit = self._config.stalled_seconds
        while not self._closed.wait(min(max(limit / _LOOKS_A_TIMEOUT, _SHORTEST_WAIT), _LONGEST_WAIT)):
            with self._lock:
                quiet = time.monotonic() - self._progress
                if quiet > limit:
                    self._note(
                        "stalled", True, f"nothing was recorded for {quiet:.0f} s, run.alerts.stalled_seconds={limit:g}"
                    )

    def _note(self, cause: str, is_there: bool, message: str) -> None:
        if is_there != (cause in self._active):
            (self._active.add if is_there else self._active.discard)(cause)
            self._tell(Alert(cause, self._step, is_there, message))


def active_causes(file: Path) -> set[str]:
    """The causes that an alerts.jsonl leaves raised; empty without such a file."""
    active: set[str] = set()
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        record = json.loads(line)
        (active.add if record["state"] == "raised" else active.discard)(record["cause"])
    return active & set(CAUSES)
