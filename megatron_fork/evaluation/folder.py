"""The folder of an evaluation: its settings, and the finished responses as trace files. One process uses it at a time.

`settings.json` has what decides the result: the same settings go on in the folder, others are refused by the field.
`traces/part-*.parquet` are the responses as they were finished, each in one file. `evaluation.json`, `evaluation.md` and
`problems.jsonl` come once all responses are there.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from megatron_fork.errors import EvaluationError, shown, way_out
from megatron_fork.evaluation.problems import Key
from megatron_fork.files import replace_file
from megatron_fork.recipe import flat
from megatron_fork.traces import Origin, TracedResponse, open_traces, write_traces

SETTINGS = "settings.json"
RESULTS = "evaluation.json"
_PART = re.compile(r"part-(\d{5,})-\d+\.parquet")
_AGREE = "choose another --out for other settings; --out of an unfinished evaluation goes on with it"


@dataclass
class EvaluationFolder:
    """Where one rank writes its part files; the first rank writes the rest."""

    path: Path
    rank: int
    origin: Origin
    number: int = 0
    """Of the next part file; the same on every rank to begin with."""

    def finished(self) -> set[Key]:
        """The responses that earlier attempts have left; raises `TraceError` for a damaged file."""
        if not self.parts():
            return set()
        found: set[Key] = set()
        for part in open_traces(*self.parts()).parts(["set", "prompt_id", "sample"]):
            found |= set(zip(part.values("set"), part.values("prompt_id"), part.values("sample"), strict=True))
        return found

    def parts(self) -> list[Path]:
        return sorted(each for each in (self.path / "traces").glob("part-*.parquet") if _PART.fullmatch(each.name))

    def next_number(self) -> int:
        """Above those of all part files that are there."""
        numbers = [int(match[1]) for each in self.parts() if (match := _PART.fullmatch(each.name))]
        return max(numbers, default=-1) + 1

    def keep(self, responses: Sequence[TracedResponse]) -> None:
        """Write finished responses to a file of their own."""
        write_traces(self.path / "traces" / f"part-{self.number:05d}-{self.rank}.parquet", responses, self.origin)
        self.number += 1

    def write(self, name: str, text: str) -> None:
        """Replace a file; raises `EvaluationError` if it cannot be written."""
        try:
            replace_file(self.path / name, text)
        except OSError as error:
            raise _unwritable(self.path, error) from error


def claim_folder(path: Path, settings: Mapping[str, Any]) -> TextIO:
    """Take the folder for this process and these settings, until the returned file is closed.

    Raises `EvaluationError` if another process has it, if it cannot be written, if it holds something else, or an evaluation
    with other settings, which are named.
    """
    if path.exists() and not path.is_dir():
        raise EvaluationError(f"--out={path} is a file", hint="name a folder; it is created if it does not exist")
    if path.is_dir() and not (path / SETTINGS).is_file() and any(each.name != "lock" for each in path.iterdir()):
        raise EvaluationError(f"--out={path} holds files that are not of an evaluation", hint="choose another folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("a", encoding="utf-8")
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise EvaluationError(f"--out={path} is in use by another process", hint="wait, or choose another") from error
    try:
        _agree(path, json.loads(json.dumps(settings)))
    except BaseException:
        lock.close()
        raise
    return lock


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; raises `EvaluationError` if it is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{file} cannot be read: {error}", hint="is it an evaluation's, and complete?") from error
    if not isinstance(found, dict):
        raise EvaluationError(f"{file} is not a JSON object", hint="is it an evaluation's?")
    return found


def _agree(path: Path, settings: dict[str, Any]) -> None:
    file = path / SETTINGS
    if not file.is_file():
        try:
            replace_file(file, json.dumps(settings, indent=2) + "\n")
        except OSError as error:
            raise _unwritable(path, error) from error
        return
    differing = differences(read_json(file), settings)
    if differing:
        name, before, now = differing[0]
        more = f", and {len(differing) - 1} more differ" if len(differing) > 1 else ""
        raise EvaluationError(
            f"--out={path} holds an evaluation with {name}={shown(before)}, not {shown(now)}{more}", hint=_AGREE
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted name, value before, value now) of the settings that differ; None where there is none."""
    old, new = dict(flat(dict(before))), dict(flat(dict(now)))
    return [(name, old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)]


def _unwritable(path: Path, error: OSError) -> EvaluationError:
    return EvaluationError(
        f"--out={path} cannot be written: {error.strerror or error}", hint=way_out(error, elsewhere="--out")
    )
