"""What is known so far, on disk: `results.json` whole at every moment, `results.jsonl` a line a part as it ended."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_check.errors import CheckError
from gpu_check.figures import Figure, Goal, Reading

# How a part ended. Those in FINAL are results; the others are tried again with --missing.
PASSED, WRONG, FAILED, STOPPED, INTERRUPTED, SKIPPED = "passed", "wrong", "failed", "stopped", "interrupted", "skipped"
FINAL = (PASSED, WRONG, FAILED)
NAME = "results.json"


@dataclass
class PartResult:
    """How a part ended and what it found. `reason` says why it did not pass."""

    part: str
    result: str
    seconds: float = 0.0
    limit_seconds: float = 0.0
    exit_code: int | None = None
    reason: str = ""
    reading: Reading = field(default_factory=Reading)

    def as_data(self) -> dict[str, Any]:
        data: dict[str, Any] = {"part": self.part, "result": self.result, "seconds": round(self.seconds, 1)}
        data["limit_seconds"] = round(self.limit_seconds, 1)
        if self.exit_code is not None:
            data["exit_code"] = self.exit_code
        if self.reason:
            data["reason"] = self.reason
        data["figures"] = [figure.as_data() for figure in self.reading.figures]
        if self.reading.wrong:
            data["wrong"] = self.reading.wrong
        if self.reading.notes:
            data["notes"] = self.reading.notes
        return data

    @classmethod
    def of_data(cls, data: dict[str, Any]) -> PartResult:
        reading = Reading([figure_of(each) for each in data["figures"]], data.get("wrong", []), data.get("notes", []))
        return cls(
            data["part"],
            data["result"],
            data["seconds"],
            data["limit_seconds"],
            data.get("exit_code"),
            data.get("reason", ""),
            reading,
        )


def figure_of(data: dict[str, Any]) -> Figure:
    goal = None
    if "goal" in data:
        _, side, bound = data["goal"].split()
        goal = Goal(float(bound), at_most=side == "most")
    return Figure(data["name"], data.get("value"), data.get("unit", ""), goal, data.get("note", ""))


class Results:
    """The results of one machine and one state of the code, in one folder."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self.about = about
        self.parts: dict[str, PartResult] = {}

    @classmethod
    def opened(cls, folder: Path, about: dict[str, Any], *, fixed: tuple[str, ...]) -> Results:
        """Those in the folder, if any; refused where they are of another machine or code, by the `fixed` keys of `about`."""
        results = cls(folder, about)
        path = folder / NAME
        if not path.is_file():
            return results
        try:
            before = json.loads(path.read_text())
            parts = [PartResult.of_data(each) for each in before["parts"]]
            differing = [key for key in fixed if before["about"].get(key) != about.get(key)]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckError(f"{path} cannot be read as results: {error!r}", hint="give another --out") from error
        if differing:
            key = differing[0]
            raise CheckError(
                f"{path} is of another {key}: {before['about'].get(key)!r}, here {about.get(key)!r}",
                hint="give another --out: figures of two states do not belong in one table",
            )
        results.parts = {each.part: each for each in parts}
        return results

    def add(self, result: PartResult) -> None:
        """Keep it, in place of an earlier one of the part; both files are on disk when this returns."""
        self.parts[result.part] = result
        with (self.folder / "results.jsonl").open("a") as lines:
            lines.write(json.dumps(result.as_data()) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        self.write()

    def write(self) -> None:
        data = {"about": self.about, "parts": [result.as_data() for result in self.parts.values()]}
        replace(self.folder / NAME, json.dumps(data, indent=1) + "\n")


def replace(path: Path, text: str) -> None:
    """The file holds the old text or the new one at every moment."""
    new = path.with_name(f"{path.name}.new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
