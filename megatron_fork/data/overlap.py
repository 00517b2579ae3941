"""Removes questions that occur twice, or that occur in an evaluation set too. Rows are streamed from file to file one by one.

Questions are compared as words: case, punctuation, spacing and LaTeX's dollars and braces do not count. A row is contaminated
if it shares `ngram` consecutive words with an evaluation question; a shorter evaluation question must be the row's whole
question.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from megatron_fork.data.columns import Columns, pick, question_of
from megatron_fork.data.presets import PRESETS
from megatron_fork.data.rows import read_rows
from megatron_fork.errors import ConfigError, DataError
from megatron_fork.files import at_home

WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class RowFile:
    """A file of rows, and the columns of the question and the answer."""

    path: Path
    split: str | None = None
    columns: Columns = field(default_factory=Columns)
    subset: str | None = None
    must_answer: bool = False
    """Whether a row without the answer column is refused even if only questions are read."""

    def asked(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Place, question and row of every row."""
        for place, row in read_rows(self.path, self.split, self.subset):
            if self.must_answer:
                pick(row, self.columns.answer, place)
            yield place, question_of(row, self.columns.prompt, place), row

    def questions(self) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
        """(place, question, answer, row); the answer as in its column, or as JSON if it is not text."""
        for place, question, row in self.asked():
            answer = pick(row, self.columns.answer, place)
            yield place, question, answer if isinstance(answer, str) else _json(answer, place), row


@dataclass
class DuplicateCounts:
    """`conflicting`: rows whose question has a different answer in another row."""

    rows: int = 0
    kept: int = 0
    duplicates: int = 0
    conflicting: int = 0


@dataclass
class ContaminationCounts:
    """`removed_by`: rows by the evaluation set in which they were found."""

    rows: int = 0
    kept: int = 0
    removed: int = 0
    evaluation_questions: int = 0
    removed_by: dict[str, int] = field(default_factory=dict)


def named_file(text: str, split: str | None, columns: Columns | None, subset: str | None = None) -> RowFile:
    """The file of `PRESET:PATH` or of a path; a preset gives the columns, the split and the subset of its file."""
    name, colon, path = text.partition(":")
    path = at_home(path)
    if has_preset(text):
        data = PRESETS[name]["data"]
        folder = Path(path).is_dir()
        return RowFile(
            Path(path),
            split or (data["split"] if folder else None),
            columns or Columns(**data["columns"]),
            subset or data.get("subset"),
        )
    if colon and not Path(text).exists():
        raise ConfigError(f"{name} is not a preset", hint=f"known: {', '.join(PRESETS)}")
    return RowFile(Path(at_home(text)), split, columns or Columns(), subset)


def has_preset(text: str) -> bool:
    """Whether `text` names a preset before the path."""
    name, colon, _ = text.partition(":")
    return bool(colon) and name in PRESETS


def deduplicate(source: RowFile, out: Path, *, conflicts: Literal["drop", "first"] = "drop") -> DuplicateCounts:
    """Write the first row of every question to `out`, as JSON lines; reads the source twice."""
    answers: dict[bytes, bytes] = {}
    contradicted: set[bytes] = set()
    for _, question, answer, _ in source.questions():
        key, value = _digest(words(question)), _digest([" ".join(answer.split())])
        if answers.setdefault(key, value) != value:
            contradicted.add(key)
    counts = DuplicateCounts()

    def kept() -> Iterator[dict[str, Any]]:
        written: set[bytes] = set()
        for _, question, _, row in source.questions():
            counts.rows += 1
            key = _digest(words(question))
            if key in contradicted:
                counts.conflicting += 1
            if key in written or (key in contradicted and conflicts == "drop"):
                counts.duplicates += key not in contradicted
                continue
            written.add(key)
            counts.kept += 1
            yield row

    _write(out, kept())
    return counts


def decontaminate(
    source: RowFile, out: Path, against: Sequence[RowFile], *, ngram: int = 13, removed: Path | None = None
) -> ContaminationCounts:
    """Write the rows that share no `ngram` words with a question of `against` to `out`; the others, and why, to `removed`."""
    if ngram < 2:
        raise ConfigError(f"--ngram {ngram} would match single words", hint="13 is usual, 8 is strict")
    counts = ContaminationCounts()
    grams: dict[bytes, str] = {}
    for file in against:
        for place, question, _ in file.asked():
            counts.evaluation_questions += 1
            counts.removed_by.setdefault(str(file.path), 0)
            for gram in _grams(words(question), ngram):
                grams.setdefault(gram, f"{file.path}\n{place}")
    caught: list[dict[str, str]] = []

    def kept() -> Iterator[dict[str, Any]]:
        for place, question, row in source.asked():
            counts.rows += 1
            found = next((grams[gram] for gram in _grams(words(question), ngram) if gram in grams), None)
            if found is None:
                counts.kept += 1
                yield row
                continue
            path, where = found.split("\n")
            counts.removed += 1
            counts.removed_by[path] += 1
            caught.append({"row": place, "found_in": where, "question": question})

    _write(out, kept())
    if removed is not None:
        _write(removed, caught)
    return counts


def words(text: str) -> list[str]:
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def summary(counts: DuplicateCounts | ContaminationCounts) -> str:
    """The counts on one line."""
    shown = [f"{name.replace('_', ' ')} {value:,}" for name, value in asdict(counts).items() if isinstance(value, int)]
    if isinstance(counts, ContaminationCounts):
        shown += [f"{count:,} by {path}" for path, count in counts.removed_by.items()]
    return ", ".join(shown)


def _json(value: Any, place: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=_dated)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{place} has a value that JSON cannot hold: {error}", hint="write it as text or numbers"
        ) from error


def _dated(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time | Decimal):
        return str(value)
    raise TypeError(f"a {type(value).__name__}")


def _grams(text: list[str], size: int) -> Iterator[bytes]:
    """Digests of all `size` consecutive words; for a shorter text, one digest of all its words, marked as whole."""
    if len(text) < size:
        yield _digest(["<whole>", *text])
    for start in range(len(text) - size + 1):
        yield _digest(text[start : start + size])


def _digest(parts: Iterable[str]) -> bytes:
    return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _write(out: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines: the file is complete, or it does not exist."""
    if out.suffix != ".jsonl":
        raise ConfigError(f"{out} would be written as JSON lines", hint="give it the suffix .jsonl")
    partial = out.with_name(out.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(_json(row, "a row") + "\n")
        partial.replace(out)
    except (OSError, UnicodeEncodeError) as error:
        raise DataError(
            f"{out} cannot be written: {error}", hint="check that the folder exists and has space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
