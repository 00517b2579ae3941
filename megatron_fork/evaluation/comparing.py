"""Two evaluations of the same prompts, problem by problem: differences with intervals, and the problems that flipped."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_fork.errors import EvaluationError, shown
from megatron_fork.evaluation.folder import RESULTS, differences, read_json
from megatron_fork.evaluation.results import estimates, interval_in_words
from megatron_fork.evaluation.tables import cell, percent, table

_HINT = "give two folders that `megatron-fork evaluate` has finished"
_ESTIMATE = re.compile(r"(avg|pass|maj)@(\d+)")
# Flipped problems in the table; JSON has all.
_SHOWN = 20


@dataclass(frozen=True)
class Finished:
    """A finished evaluation: its results, and its rows by set and problem."""

    folder: Path
    results: dict[str, Any]
    rows: dict[str, dict[str, dict[str, Any]]]


def read_evaluation(folder: Path) -> Finished:
    """The evaluation in a folder; raises `EvaluationError` if there is none, or it is not finished or damaged."""
    if not (folder / RESULTS).is_file():
        what = "is not finished" if (folder / "settings.json").is_file() else "has no evaluation"
        raise EvaluationError(f"{folder} {what}: it has no {RESULTS}", hint=_HINT)
    results = read_json(folder / RESULTS)
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    place = ""
    try:
        for number, line in enumerate((folder / "problems.jsonl").read_text(encoding="utf-8").splitlines(), start=1):
            place = f" line {number}"
            row = json.loads(line)
            samples, right = row["samples"], row["right"]
            if not (isinstance(samples, int) and isinstance(right, int) and 0 <= right <= samples > 0):
                raise ValueError(f"{right!r} right of {samples!r} samples")
            rows.setdefault(str(row["set"]), {})[str(row["prompt_id"])] = row
        if not isinstance(results["sets"], dict) or not isinstance(results["settings"], dict) or not rows:
            raise ValueError("no sets")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EvaluationError(f"{folder}/problems.jsonl{place} cannot be read: {error}", hint=_HINT) from error
    return Finished(folder, results, rows)


def compare_evaluations(first: Finished, second: Finished, *, seed: int = 0) -> dict[str, Any]:
    """What changed from the first to the second, for every set that both have, as JSON values.

    Raises `EvaluationError` if they have no set in common, or a set's problems or their answers differ. Another tokenizer,
    model or temperature is no obstacle: the settings that differ are listed.
    """
    common = [name for name in first.rows if name in second.rows]
    if not common:
        raise EvaluationError(
            f"{first.folder} has {', '.join(first.rows)}, {second.folder} has {', '.join(second.rows)}: no set in common",
            hint="evaluate both on the same sets, under the same names",
        )
    return {
        "version": 1,
        "first": str(first.folder),
        "second": str(second.folder),
        "interval": f"{interval_in_words()}, of the paired differences",
        "settings": [
            {"setting": name, "first": before, "second": now}
            for name, before, now in differences(first.results["settings"], second.results["settings"])
        ],
        "tokenizers_differ": first.results.get("tokenizer") != second.results.get("tokenizer"),
        "only_in_one": sorted({*first.rows, *second.rows} - set(common)),
        "sets": {name: _of_set(name, first, second, seed) for name in common},
    }


def _of_set(name: str, first: Finished, second: Finished, seed: int) -> dict[str, Any]:
    before, after = first.rows[name], second.rows[name]
    one_sided = sorted(before.keys() ^ after.keys())
    if one_sided:
        holder, other = (first, second) if one_sided[0] in before else (second, first)
        raise EvaluationError(
            f"set {name}: {len(one_sided)} problems are in one evaluation alone, such as {one_sided[0]} of {holder.folder}, "
            f"which {other.folder} does not have",
            hint="evaluate both on the same file",
        )
    for problem, row in before.items():
        if row.get("answer") != after[problem].get("answer"):
            raise EvaluationError(
                f"set {name}, problem {problem}: the answers differ, {shown(row.get('answer'))} and "
                f"{shown(after[problem].get('answer'))}",
                hint="evaluate both on the same file, read in the same way",
            )
    names = _common_estimates(next(iter(before.values())), next(iter(after.values())))
    shares = {
        problem: (row["right"] / row["samples"], after[problem]["right"] / after[problem]["samples"])
        for problem, row in before.items()
    }
    flipped = [
        {
            "prompt_id": problem,
            "prompt": before[problem].get("prompt", ""),
            "answer": before[problem].get("answer", ""),
            "first": old,
            "second": new,
        }
        for problem, (old, new) in shares.items()
        if (old >= 0.5) != (new >= 0.5)
    ]
    return {
        "problems": len(before),
        "differences": dict(zip(names, _differences(list(names.values()), before, after, seed), strict=True)),
        "better": sum(new > old for old, new in shares.values()),
        "worse": sum(new < old for old, new in shares.values()),
        "gained": sum(each["second"] >= 0.5 for each in flipped),
        "lost": sum(each["second"] < 0.5 for each in flipped),
        "flipped": sorted(flipped, key=lambda each: (each["first"] - each["second"], each["prompt_id"])),
    }


def _common_estimates(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """By label, the columns of both; avg@k has the same expectation for every k."""
    averages = [next(key for key in row if key.startswith("avg@")) for row in (before, after)]
    label = averages[0] if averages[0] == averages[1] else f"{averages[0]} and {averages[1].removeprefix('avg')}"
    found = {label: (averages[0], averages[1])}
    both = [key for key in before if key in after and _ESTIMATE.fullmatch(key) and not key.startswith("avg")]
    return found | {key: (key, key) for key in both}


def _differences(
    columns: Sequence[tuple[str, str]], before: Mapping[str, Any], after: Mapping[str, Any], seed: int
) -> list[dict[str, Any]]:
    old = [np.asarray([row[name] for row in before.values()], dtype=np.float64) for name, _ in columns]
    new = [np.asarray([after[problem][name] for problem in before], dtype=np.float64) for _, name in columns]
    found = estimates([later - earlier for earlier, later in zip(old, new, strict=True)], seed)
    return [
        {"first": float(earlier.mean()), "second": float(later.mean()), "difference": of.pop("value"), **of}
        for earlier, later, of in zip(old, new, found, strict=True)
    ]


def comparison_markdown(found: Mapping[str, Any]) -> str:
    """The comparison as tables, in percent and percentage points."""
    lines = [f"A is {cell(found['first'])}, B is {cell(found['second'])}.", ""]
    for name, numbers in found["sets"].items():
        rows = [
            [label, percent(each["first"]), percent(each["second"]), f"{100 * each['difference']:+.1f}", _signed(each)]
            for label, each in numbers["differences"].items()
        ]
        lines += [f"## {cell(name)}", "", f"{numbers['problems']:,} problems", ""]
        lines += table(["", "A %", "B %", "B - A", "interval"], rows)
        lines += [
            "",
            f"{numbers['better']:,} problems are right more often in B, {numbers['worse']:,} less often. Flipped, right in at "
            f"least half of the responses to one and not of the other: {numbers['gained']:,} gained, {numbers['lost']:,} lost.",
            "",
        ]
        if numbers["flipped"]:
            lines += [*table(["problem", "A %", "B %", "question"], _flipped(numbers["flipped"])), ""]
        if len(numbers["flipped"]) > _SHOWN:
            lines += [f"{_SHOWN} of {len(numbers['flipped']):,} flipped problems are shown.", ""]
    if found["only_in_one"]:
        lines += [f"In one of them alone, and not compared: {', '.join(map(cell, found['only_in_one']))}.", ""]
    lines += [f"Intervals: {found['interval']}.", ""]
    differing = [
        [cell(each["setting"]), cell(str(each["first"])), cell(str(each["second"]))] for each in found["settings"]
    ]
    lines += table(["setting", "A", "B"], differing) if differing else ["All settings are the same."]
    lines += ["", "The tokenizers differ: lengths in tokens cannot be compared."] if found["tokenizers_differ"] else []
    return "\n".join(lines) + "\n"


def _flipped(problems: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    half = _SHOWN // 2
    few = problems if len(problems) <= _SHOWN else [*problems[:half], *problems[-half:]]
    return [
        [each["prompt_id"], percent(each["first"]), percent(each["second"]), cell(str(each["prompt"]))[:120]]
        for each in few
    ]


def _signed(each: Mapping[str, Any]) -> str:
    return f"{100 * each['interval'][0]:+.1f} to {100 * each['interval'][1]:+.1f}"
