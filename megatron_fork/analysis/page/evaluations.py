"""What evaluations among a page's places found, with its intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_fork.analysis.tokens import visible
from megatron_fork.errors import EvaluationError
from megatron_fork.evaluation import RESULTS, estimate_rows, read_json


@dataclass(frozen=True)
class Estimates:
    """Of one set of an evaluation: `rows` have a name such as `pass@4`, a value and an interval in percent."""

    title: str
    problems: int
    samples: int
    rows: list[list[str]]
    interval: str
    """How the intervals were made."""


def estimates_at(places: Sequence[Path]) -> list[Estimates]:
    """Of every set of the finished evaluations; raises `EvaluationError` for results that are none.

    A set is called after its evaluation's folder as well where there are several evaluations.
    """
    files = [place / RESULTS for place in places if (place / RESULTS).is_file()]
    found = []
    for file in files:
        results = read_json(file)
        of = f"{file.parent.resolve().name}: " if len(files) > 1 else ""
        try:
            for name, numbers in results["sets"].items():
                shape = int(numbers["problems"]), int(numbers["samples"])
                found.append(
                    Estimates(visible(f"{of}{name}"), *shape, estimate_rows(numbers), visible(str(results["interval"])))
                )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise EvaluationError(
                f"{file} holds no results of an evaluation: {type(error).__name__} {error}",
                hint="evaluate again, or give the trace files alone, such as EVALUATION/traces",
            ) from error
    return found
