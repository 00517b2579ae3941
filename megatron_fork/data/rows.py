"""Reads the rows of a prompt file one by one: JSON lines, Parquet, CSV, Arrow, or a folder of them like Hugging Face datasets.

Only a `.json` file that is one array is read whole. Every row comes with its place ("a.jsonl line 7") for messages, and with
the values of the file unchanged. The library `datasets` does neither: in a CSV file it reads the answer 007 as 7 and NA as
none, in JSON a date as a time and a large whole number as a float (benchmarks/results/prompt_rows.json). It also costs half a
second and 125 MiB more.
"""

from __future__ import annotations

import csv
import json
import sys
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron_fork.data.subsets import choose, one_of
from megatron_fork.errors import DataError
from megatron_fork.files import UTF8

Row = dict[str, Any]
PlacedRow = tuple[str, Row]

BATCH_ROWS = 1024
READABLE = "JSON lines (.jsonl, .json), .parquet, .csv, .arrow, or a folder of a Hugging Face dataset"


def read_rows(
    source: Path, split: str | None = None, subset: str | None = None, *, field: str = "data.source"
) -> Iterator[PlacedRow]:
    """Every row of `source`, in the order of its files' names; raises `DataError` that names file and line.

    `field`: what names the source in messages.
    """
    found = 0
    for path in data_files(source, split, subset, field=field):
        for placed in READERS[path.suffix.lower()](path):
            found += 1
            yield placed
    if not found:
        raise DataError(f"{field}={source} has no rows", hint="is the file complete?")


def data_files(
    source: Path, split: str | None = None, subset: str | None = None, *, field: str = "data.source"
) -> list[Path]:
    """The files that hold the rows of `split` and `subset`; a single file is taken as it is."""
    if source.is_file():
        if source.suffix.lower() not in READERS:
            raise DataError(f"{field}={source} has the suffix {source.suffix!r}", hint=f"readable: {READABLE}")
        return [source]
    if not source.is_dir():
        raise DataError(f"{field}={source} is not a file or folder", hint=f"give reach, arithmetic, or {READABLE}")
    saved = _saved_by_datasets(source, split)
    if saved is not None:
        return saved

    def is_rows(path: Path) -> bool:
        return path.suffix.lower() in READERS and path.is_file() and not _is_beside(path.relative_to(source))

    files = sorted(path for path in source.rglob("*") if is_rows(path))
    if not files:
        raise DataError(f"{field}={source} has no data files", hint=f"readable: {READABLE}")
    chosen = choose(source, files, split, subset, is_rows=is_rows)
    if len({path.suffix.lower() for path in chosen}) > 1:
        raise DataError(
            f"{field}={source} has rows in several formats, which may be the same rows twice: "
            f"{', '.join(str(path.relative_to(source)) for path in chosen[:4])}",
            hint="name the file, or a folder with one format",
        )
    return chosen


def _is_beside(path: Path) -> bool:
    """Whether a file of a data set's folder does not hold rows."""
    return path.name in ("dataset_infos.json", "dataset_info.json", "state.json") or any(
        part.startswith(".") for part in path.parts
    )


def _saved_by_datasets(source: Path, split: str | None) -> list[Path] | None:
    """Files of a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote; None for any other folder."""
    splits = source / "dataset_dict.json"
    if splits.is_file():
        names = _json_file(splits).get("splits", [])
        return data_files(source / one_of(source, {name: name for name in names}, split, "split"))
    state = source / "state.json"
    if not state.is_file():
        return None
    return [source / entry["filename"] for entry in _json_file(state).get("_data_files", [])]


def _json_file(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding=UTF8), object_pairs_hook=_object)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON: {error}", hint="save or download the data set again") from error


def _json_lines(path: Path) -> Iterator[PlacedRow]:
    with path.open("rb") as file:
        file.seek(len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0)
        start = file.tell()
        first = next((line.lstrip() for line in file if line.strip()), b"")
        if path.suffix.lower() == ".json" and first.startswith(b"["):
            for number, row in enumerate(_json_file(path), start=1):
                place = f"{path} entry {number}"
                yield place, _as_row(row, place)
            return
        file.seek(start)
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path} line {number}"
            try:
                yield place, _as_row(json.loads(line.decode("utf-8"), object_pairs_hook=_object), place)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{place} has no readable JSON: {error}",
                    hint='each line is an object like {"prompt": "...", "answer": "..."}',
                ) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which no value is lost; raises `ValueError` for a name that it has twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found


def _as_row(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(
            f"{place} has a {type(row).__name__} instead of an object",
            hint='a row is {"prompt": "...", "answer": "..."}',
        )
    return row


def _csv(path: Path) -> Iterator[PlacedRow]:
    csv.field_size_limit(sys.maxsize)
    with path.open(newline="", encoding=UTF8) as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                place = f"{path} line {reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(
                        f"{place} has more or fewer fields than the header", hint="quote fields with commas"
                    )
                yield place, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{path} line {reader.line_num + 1} has no readable CSV: {error}", hint="is it UTF-8?"
            ) from error


def _parquet(path: Path) -> Iterator[PlacedRow]:
    import pyarrow.parquet

    def batches() -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS)

    return _arrow_batches(path, batches)


def _arrow(path: Path) -> Iterator[PlacedRow]:
    import pyarrow

    def batches() -> Iterator[Any]:
        with pyarrow.memory_map(str(path)) as file:
            try:
                yield from pyarrow.ipc.open_stream(file)
            except pyarrow.ArrowInvalid:
                file.seek(0)
                reader = pyarrow.ipc.open_file(file)
                yield from (reader.get_batch(number) for number in range(reader.num_record_batches))

    return _arrow_batches(path, batches)


def _arrow_batches(path: Path, batches: Callable[[], Iterator[Any]]) -> Iterator[PlacedRow]:
    import pyarrow

    number = 0
    try:
        for batch in batches():
            if len(set(batch.schema.names)) < len(batch.schema.names):
                raise DataError(
                    f"{path} has several columns of one name: {', '.join(batch.schema.names)}", hint="rename one"
                )
            for start in range(0, batch.num_rows, BATCH_ROWS):
                for row in batch.slice(start, BATCH_ROWS).to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} cannot be read after row {number}: {line[:200]}", hint="download it again") from error


READERS: dict[str, Callable[[Path], Iterator[PlacedRow]]] = {
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
}
