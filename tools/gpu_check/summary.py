"""The last word: how each part ended and each figure beside its goal, for the console and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpu_check.figures import Figure
from gpu_check.results import PartResult


def part_lines(result: PartResult) -> Iterator[str]:
    """What is said of a part when it has ended."""
    took = f", {result.seconds:.0f} of {result.limit_seconds:.0f} s" if result.limit_seconds else ""
    yield f"{result.part}: {result.result}{took}{': ' + result.reason if result.reason else ''}"
    yield from (f"  WRONG: {line}" for line in result.reading.wrong)
    for figure in result.reading.figures:
        yield f"  {figure.name}: {figure.words}{_beside(figure)}"
    yield from (f"  {note}" for note in result.reading.notes)


def _beside(figure: Figure) -> str:
    goal = f" (goal {figure.goal}: {figure.verdict or 'no figure'})" if figure.goal else ""
    note = f" [{figure.note}]" if figure.note and figure.value is not None else ""
    return goal + note


def markdown(about: dict[str, Any], results: list[PartResult]) -> str:
    """The whole, as it can stand beside the JSON file under benchmarks/results/."""
    gpu = about["machine"]["gpu"]
    versions = ", ".join(f"{name} {number}" for name, number in about["machine"]["packages"].items() if number)
    lines = [
        "# What scripts/gpu_check.sh measured",
        "",
        f"{about['started']}, state of the code {about['commit']}.",
        f"{gpu['name'] + ', CUDA ' + str(gpu['cuda']) if gpu else 'On a CPU, at a size for it: no figure says anything.'} "
        f"Python {about['machine']['python']}, {versions}.",
        "",
        "| part | result | seconds | why |",
        "|---|---|---|---|",
    ]
    for result in results:
        why = "; ".join([*([result.reason] if result.reason else []), *result.reading.wrong, *result.reading.notes])
        lines.append(f"| {result.part} | {result.result} | {result.seconds:.0f} | {_cell(why)} |")
    lines += ["", "| part | figure | value | goal | |", "|---|---|---|---|---|"]
    for result in results:
        for figure in result.reading.figures:
            note = f" ({figure.note})" if figure.note and figure.value is not None else ""
            goal = str(figure.goal) if figure.goal else ""
            lines.append(
                f"| {result.part} | {_cell(figure.name)} | {_cell(figure.words + note)} | {goal} | {figure.verdict} |"
            )
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
