"""Outcomes as tables for the terminal and as plain data for the file."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from head.problem import DTYPES, Shape
from head.runs import Outcome

_WALL, _PROCESSOR = 0, 1


def show_times(console: Console, shape: Shape, outcomes: dict[str, Outcome]) -> None:
    """Median seconds of each phase, and totals in terms of the floor's in the same round."""
    able = {key: outcome for key, outcome in outcomes.items() if outcome.rounds}
    phases = list(next(iter(able.values())).rounds[0]) if able else []
    table = _table(
        str(shape), [f"{phase} s" for phase in phases] + ["wall s", "x floor", "processor s", "x floor", "off by"]
    )
    for outcome in able.values():
        cells = [f"{outcome.median_phase(phase):.3f}" for phase in phases]
        for measure in (_WALL, _PROCESSOR):
            ratio = f"{outcome.over(able['floor'], measure):.2f}" if "floor" in able else "-"
            cells += [f"{outcome.median_total(measure):.3f}", ratio]
        worst = max(outcome.differences.values(), default=None)
        cells.append("" if worst is None else f"{worst:.0e}" + (" WRONG" if outcome.is_wrong(shape.dtype) else ""))
        table.add_row(outcome.label, *cells)
    _print(console, table, outcomes)


def show_peaks(console: Console, shape: Shape, outcomes: dict[str, Outcome]) -> None:
    """Peak over the inputs in each phase, gradients included."""
    able = [outcome for outcome in outcomes.values() if outcome.peaks_mebibytes]
    phases = list(able[0].peaks_mebibytes) if able else []
    table = _table(str(shape), [f"{phase} MiB" for phase in phases])
    for outcome in able:
        table.add_row(outcome.label, *(f"{outcome.peaks_mebibytes[phase]:,.0f}" for phase in phases))
    _print(console, table, outcomes)


def show_growth(
    console: Console, shape: Shape, by_tokens: dict[int, tuple[dict[str, Outcome], dict[str, Outcome]]]
) -> None:
    """Time and peak by tokens: the first should grow like them, the second not at all once the outputs are taken off."""
    table = _table(shape.head, ["tokens", "wall s", "us a token", "x floor", "peak MiB", "less outputs MiB"])
    unavailable: dict[str, Outcome] = {}
    for tokens, (timed, weighed) in by_tokens.items():
        for key, outcome in timed.items():
            if key == "floor" or not outcome.rounds or not weighed[key].peaks_mebibytes:
                unavailable |= {key: outcome} if outcome.unavailable else {}
                continue
            seconds, peak = outcome.median_total(_WALL), max(weighed[key].peaks_mebibytes.values())
            table.add_row(
                outcome.label,
                f"{tokens:,}",
                f"{seconds:.3f}",
                f"{seconds / tokens * 1e6:,.0f}",
                f"{outcome.over(timed['floor'], _WALL):.2f}",
                f"{peak:,.0f}",
                f"{peak - outputs_mebibytes(shape, tokens):,.0f}",
            )
    _print(console, table, unavailable)


def outputs_mebibytes(shape: Shape, tokens: int) -> float:
    """The update's outputs on one rank: both gradients in the model's dtype."""
    elements = (tokens + shape.vocabulary // shape.tensor) * shape.width
    return elements * DTYPES[shape.dtype].itemsize / 2**20


def as_data(shape: Shape, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """Everything measured at one shape, the medians and ratios of the table included."""
    floor = outcomes.get("floor")
    return {"shape": asdict(shape), "contenders": {key: _data(shape, outcomes[key], floor) for key in outcomes}}


def _data(shape: Shape, outcome: Outcome, floor: Outcome | None) -> dict[str, Any]:
    data = {name: value for name, value in asdict(outcome).items() if value}
    if outcome.rounds:
        data["rounds"] = [
            {phase: {"wall_s": wall, "processor_s": processor} for phase, (wall, processor) in seconds.items()}
            for seconds in outcome.rounds
        ]
        data["median"] = {"wall_s": outcome.median_total(_WALL), "processor_s": outcome.median_total(_PROCESSOR)}
        if floor and floor.rounds:
            wall, processor = outcome.over(floor, _WALL), outcome.over(floor, _PROCESSOR)
            data["over_floor"] = {"wall": wall, "processor": processor}
    if outcome.is_wrong(shape.dtype):
        data["wrong"] = True
    return rounded(data)


def rounded(data: Any) -> Any:
    """Four digits of every figure: more would be noise, and lines to read over."""
    if isinstance(data, dict):
        return {name: rounded(value) for name, value in data.items()}
    if isinstance(data, list):
        return [rounded(value) for value in data]
    return float(f"{data:.4g}") if isinstance(data, float) else data


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _print(console: Console, table: Table, outcomes: dict[str, Outcome]) -> None:
    console.print(table)
    for outcome in outcomes.values():
        if outcome.unavailable:
            console.print(f"  {outcome.label} could not: {outcome.unavailable}", markup=False)
