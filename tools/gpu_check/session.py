"""The parts one after the other: each within its limit, its result on disk when the next begins."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpu_check import budget, running
from gpu_check.commands import Place
from gpu_check.figures import Reading
from gpu_check.machine import Machine
from gpu_check.parts import TRANSFORMER_ENGINE, Part
from gpu_check.results import FAILED, INTERRUPTED, PASSED, SKIPPED, STOPPED, WRONG, PartResult, Results
from gpu_check.summary import part_lines


class Session:
    """`results` is kept up to date; `variables` are the environment of every part."""

    def __init__(
        self, python: str, project: Path, results: Results, machine: Machine, smoke: bool, variables: Mapping[str, str]
    ) -> None:
        self._python = python
        self._project = project
        self._results = results
        self._machine = machine
        self._smoke = smoke
        self._variables = variables

    def without_hindered(self, parts: Sequence[Part], *, even_if_busy: bool) -> list[Part]:
        """Those that can run here; of each other one a line and a result say why."""
        runs = []
        for part in parts:
            reason = self._machine.reason_against(part, smoke=self._smoke, even_if_busy=even_if_busy)
            if reason:
                self._tell(PartResult(part.name, SKIPPED, reason=reason))
            else:
                runs.append(part)
        return runs

    def run(self, parts: Sequence[Part], until: float) -> None:
        """By `until`, on the monotonic clock."""
        for place, part in enumerate(parts):
            limit = budget.limit_of(part, parts[place + 1 :], until - time.monotonic())
            print(f"\n{part.name}: {part.what}, at most {limit:.0f} s", flush=True)
            result = PartResult(part.name, INTERRUPTED, limit_seconds=limit)
            began = time.monotonic()
            folder = self._emptied(part)
            try:
                self._run(part, folder, limit, result)
            except running.Stopped as stop:
                result.reason = f"by {stop}"
                raise
            finally:
                result.seconds = time.monotonic() - began
                self._read(part, folder, result)
                self._tell(result)

    def _run(self, part: Part, folder: Path, limit: float, result: PartResult) -> None:
        place = Place(self._python, self._project, folder, self._smoke, self._machine.has(TRANSFORMER_ENGINE))
        log = folder / "log.txt"
        code = running.run(part.command(place), limit, log, self._variables, self._project)
        result.exit_code = code
        if code is None:
            result.result, result.reason = STOPPED, "its limit came first"
        elif code:
            result.result, result.reason = FAILED, f"exit code {code}; {log}"
        else:
            result.result = PASSED

    def _read(self, part: Part, folder: Path, result: PartResult) -> None:
        """Figures of what there is, also of a part that was stopped; what is wrong outweighs how it ended."""
        try:
            result.reading = part.read(folder)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            result.reading = Reading(notes=[f"its figures cannot be read: {error!r}"])
            if result.result == PASSED:
                result.result, result.reason = FAILED, "it left no figures that can be read"
        if result.reading.wrong:
            result.result = WRONG
        elif result.result == PASSED and not result.reading.figures:
            result.result, result.reason = FAILED, "it left no figures"
        if result.result == FAILED:
            result.reading.notes += last_lines(folder / "log.txt")

    def _emptied(self, part: Part) -> Path:
        folder = self._results.folder / part.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def _tell(self, result: PartResult) -> None:
        self._results.add(result)
        print("\n".join(part_lines(result)), flush=True)


def last_lines(log: Path, count: int = 5) -> list[str]:
    text = log.read_text(errors="replace") if log.is_file() else ""
    return [line[:300] for line in text.splitlines() if line.strip()][-count:]


def exit_code(results: Sequence[PartResult]) -> int:
    """Of the parts that were asked for. A goal that is missed, or a part that cannot run here, is no fault."""
    ended = {result.result for result in results}
    if ended & {WRONG, FAILED} or (ended and ended <= {SKIPPED}):
        return 1
    return 75 if STOPPED in ended else 0
