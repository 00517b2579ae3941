"""The results of an evaluation as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def markdown(results: Mapping[str, Any]) -> str:
    """The numbers of each set, in percent with their intervals; below it the settings that readers ask for."""
    lines: list[str] = []
    for name, numbers in results["sets"].items():
        lines += [
            f"## {cell(name)}",
            "",
            f"{numbers['problems']:,} problems, {numbers['samples']:,} samples each",
            "",
            *table(["", "%", "interval"], estimate_rows(numbers)),
            "",
            f"{numbers['solved']:,} problems were solved at least once. Responses have "
            f"{numbers['response_tokens']['mean']:,.0f} tokens in the mean, {percent(numbers['cut'])} % were cut at the limit"
            + (f", {percent(numbers['no_answer'])} % state no answer" if numbers["no_answer"] is not None else "")
            + f"; the verifier failed on {percent(numbers['failed'])} %.",
            "",
        ]
    settings = results["settings"]
    shown = ("model", "engine", "precision", "temperature", "top_p", "top_k", "min_p", "max_response_tokens", "seed")
    lines += [
        f"Intervals: {results['interval']}.",
        "",
        *table(["setting", "value"], [[name, cell(str(settings[name]))] for name in shown]),
        *(
            f"| source of {cell(name)} | {cell(str(each['source']))}, template {cell(repr(each['template']))} |"
            for name, each in settings["sets"].items()
        ),
    ]
    return "\n".join(lines) + "\n"


def estimate_rows(numbers: Mapping[str, Any]) -> list[list[str]]:
    """Of the results of one set: name such as `pass@4`, value and interval in percent."""
    asked = [("avg", numbers["avg"]["k"], numbers["avg"])]
    asked += [("pass", int(k), found) for k, found in numbers["pass"].items()]
    asked += [("maj", int(k), found) for k, found in (numbers["maj"] or {}).items()]
    return [[f"{what}@{k}", percent(found["value"]), between(found["interval"])] for what, k, found in asked]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def cell(text: str) -> str:
    """Text that neither ends its cell nor is read as HTML."""
    kept = " ".join(text.split())
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", r"\|")):
        kept = kept.replace(sign, written)
    return kept if len(kept) <= 200 else kept[:200] + "..."


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def between(interval: Sequence[float]) -> str:
    return f"{percent(interval[0])} to {percent(interval[1])}"
