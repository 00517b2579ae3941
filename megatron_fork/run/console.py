"""What a person sees during a run: a live line on a terminal, plain lines in a log file; only rank 0 prints."""

from __future__ import annotations

import logging
import math
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from megatron_fork.errors import masked

# What is shown of a step's metrics: label, name, format.
_SHOWN = (
    ("pass rate", "rollout/pass_rate", "{:.3f}"),
    ("held-out", "pass_rate", "{:.3f}"),
    ("greedy", "greedy", "{:.3f}"),
    ("loss", "loss", "{:.4f}"),
    ("entropy", "entropy/mean", "{:.3f}"),
    ("threshold", "selection/threshold", "{:.3f}"),
    ("selected", "selection/fraction", "{:.1%}"),
    ("tokens/s", "tokens_per_second", "{:,.0f}"),
)

_OF_A_SET = re.compile(r"[^/]+/avg@\d+")


def quiet_libraries() -> None:
    """Silence the libraries' notices about optional packages, which `doctor` reports."""
    warnings.filterwarnings("ignore", module=r"(megatron|torch|transformers)\b.*")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in ("megatron", "transformers", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)


class Display:
    """Progress of the stages of a run."""

    def __init__(self, *, speaks: bool, console: Console | None = None) -> None:
        self.speaks = speaks
        self.console = console or Console(highlight=False)

    def say(self, line: str) -> None:
        """Print one line."""
        if self.speaks:
            self.console.print(masked(line), markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int, *, done: int = 0, measured: int = 1) -> Iterator[Stage]:
        """Show the progress of one stage of `total` steps; the time that is left is shown once `measured` steps were timed."""
        stage = Stage(name, total, done, measured, self)
        if not (self.speaks and self.console.is_terminal):
            yield stage
            return
        with Live(stage.render(), console=self.console, refresh_per_second=4, transient=False) as live:
            stage.live = live
            yield stage


class Stage:
    """One stage: `advance` after every step, with the metrics that there are."""

    def __init__(self, name: str, total: int, done: int, measured: int, display: Display) -> None:
        self.name, self.total, self.done, self.first = name, total, done, done
        self.measured = max(1, measured)
        self.display = display
        self.live: Live | None = None
        self.latest: dict[str, float] = {}
        self.started = self.spoke = time.monotonic()
        self.progress = Progress(
            TextColumn(f"[bold]{name}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.bar = self.progress.add_task(name, total=total, completed=done, left="")

    def advance(self, metrics: Mapping[str, float], *, steps: int = 1, every_seconds: float = 0.0) -> None:
        """One or more further steps are done; plain lines come at most every `every_seconds`, and for the last step."""
        self.done += steps
        self.latest.update(metrics)
        self.progress.update(self.bar, completed=self.done, left=self._left())
        if self.live is not None:
            self.live.update(self.render())
        elif time.monotonic() - self.spoke >= every_seconds or self.done == self.total:
            self.spoke = time.monotonic()
            self.display.say(self.line(metrics))

    def line(self, metrics: Mapping[str, float]) -> str:
        """Plain text of one step, for logs."""
        words = [f"{label} {text}" for label, text in _formatted(metrics)]
        return "  ".join([f"{self.name} {self.done}/{self.total}", *words, self._left()]).rstrip()

    def render(self) -> Group:
        """Progress bar and the latest values, for a terminal."""
        table = Table.grid(padding=(0, 2))
        shown = _formatted(self.latest)
        for _ in shown:
            table.add_column(justify="right")
        table.add_row(*(f"[dim]{label}" for label, _ in shown))
        table.add_row(*(f"[bold]{text}" for _, text in shown))
        return Group(self.progress, table)

    def _left(self) -> str:
        """The time that is left at the pace so far; nothing before there is a pace."""
        steps = self.done - self.first
        if steps < self.measured:
            return ""
        seconds = round((time.monotonic() - self.started) / steps * (self.total - self.done))
        return f"ETA {seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


def _formatted(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    present = [(label, metrics[name], form) for label, name, form in _SHOWN if name in metrics]
    present += [(name, value, "{:.3f}") for name, value in metrics.items() if _OF_A_SET.fullmatch(name)]
    return [(label, form.format(value)) for label, value, form in present if math.isfinite(value)]
