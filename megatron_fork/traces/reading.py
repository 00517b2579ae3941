"""Reads trace files in parts of about a million tokens, checked: what cannot be what its column says is an error by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_fork.errors import TraceError
from megatron_fork.traces.checking import HINT, check_columns, check_values, conformed, first_line
from megatron_fork.traces.schema import COLUMNS, METADATA_KEY, Origin, arrow_schema

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet


@dataclass(frozen=True)
class Traces:
    """Responses of one file, or a part of them, with the columns that were asked for."""

    table: pyarrow.Table
    origin: Origin
    where: str
    """The file, for messages."""
    first: int = 0
    """Place of the first of them among the responses of the file."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """`[responses]` int64: response tokens of each."""
        import pyarrow.compute

        return pyarrow.compute.list_value_length(self._column("tokens")).to_numpy(zero_copy_only=False).astype(np.int64)

    def flat(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        """`[response tokens]`: a column with one entry a token, of all responses one after another.

        Raises `TraceError` if a response has no such values.
        """
        column = self._column(name)
        if column.null_count:
            raise TraceError(f"{self.where}: {column.null_count:,} responses have no {name}", hint=_without(name))
        values = column.flatten()
        return values.to_numpy(zero_copy_only=False)

    def entries(self, name: str, places: Sequence[int]) -> list[Any]:
        """Some entries of a column with one entry a token, by their places in `flat`; None where a response has no values."""
        import pyarrow

        column = self._column(name)
        if not column.null_count:
            return list(column.flatten().take(pyarrow.array(places, pyarrow.int64())).to_pylist())
        ends = np.cumsum(self.lengths)
        rows = np.searchsorted(ends, np.asarray(places, dtype=np.int64), side="right")
        inside = np.asarray(places, dtype=np.int64) - np.concatenate([[0], ends])[rows]
        found = (column[int(row)] for row in rows)
        return [row[int(place)].as_py() if row.is_valid else None for row, place in zip(found, inside, strict=True)]

    def having(self, name: str) -> Traces:
        """The responses that have values in a column."""
        return Traces(self.table.filter(self._column(name).is_valid()), self.origin, self.where, self.first)

    def with_flat(self, **columns: np.ndarray[Any, np.dtype[Any]] | None) -> Traces:
        """The same responses with other values in columns with one entry a token, as `flat` gives them; None: without any."""
        import pyarrow

        offsets = pyarrow.array(np.concatenate([[0], np.cumsum(self.lengths)]), pyarrow.int32())
        table = self.table
        for name, values in columns.items():
            kind = arrow_schema().field(name).type
            if values is None:
                column = pyarrow.nulls(len(self), kind)
            else:
                column = pyarrow.ListArray.from_arrays(offsets, pyarrow.array(values, kind.value_type), type=kind)
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, column) if place >= 0 else table.append_column(name, column)
        return Traces(table, self.origin, self.where, self.first)

    def values(self, name: str) -> list[Any]:
        """`[responses]`: a column as Python objects."""
        return list(self._column(name).to_pylist())

    def _column(self, name: str) -> pyarrow.Array:
        import pyarrow

        column = self.table.column(name)
        return pyarrow.concat_arrays(column.chunks) if column.num_chunks else pyarrow.array([], column.type)


@dataclass(frozen=True)
class TraceFiles:
    """Trace files of one model, to be read one part at a time."""

    files: tuple[Path, ...]
    origins: tuple[Origin, ...]
    responses: int

    @property
    def origin(self) -> Origin:
        return self.origins[0]

    @property
    def temperature(self) -> float:
        """Of the softmax, the same in all files; raises `TraceError` if it is not: no model can read them together."""
        for path, origin in zip(self.files, self.origins, strict=True):
            if origin.temperature != self.origin.temperature:
                raise TraceError(
                    f"{path} is of temperature {origin.temperature:g}, {self.files[0]} of {self.origin.temperature:g}",
                    hint="give traces of one temperature at a time",
                )
        return self.origin.temperature

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[Traces]:
        """The responses in parts of one row group each; `columns`: only these, `tokens` always among them.

        Raises `TraceError` for a damaged file, and for values that a column cannot have.
        """
        names = [column.name for column in COLUMNS] if columns is None else list(dict.fromkeys(["tokens", *columns]))
        for path, origin in zip(self.files, self.origins, strict=True):
            with _opened(path) as file:
                present = [name for name in names if name in file.schema_arrow.names]
                first = 0
                for group in range(file.num_row_groups):
                    with _damage_of(path):
                        table = file.read_row_group(group, columns=present)
                    table = conformed(table, names, str(path))
                    check_values(table, str(path), first=first)
                    yield Traces(table, origin, str(path), first)
                    first += len(table)


def open_traces(*places: Path) -> TraceFiles:
    """The trace files at `places`: files, folders of them, or folders of runs and evaluations, which have `traces/`.

    Raises `TraceError` if there are none, if one is no trace file or there twice, or if they are of different tokenizers.
    """
    files = tuple(file for place in places for file in _files_at(place))
    twice = [file for file, count in Counter(file.resolve() for file in files).items() if count > 1]
    if twice:
        raise TraceError(
            f"{twice[0]} is among the traces twice", hint="name each once; a folder stands for all of its trace files"
        )
    origins, responses = [], 0
    for path in files:
        with _opened(path) as file:
            responses += file.metadata.num_rows
            origins.append(_origin(path, file.schema_arrow))
            check_columns(path, file.schema_arrow)
    for path, origin in zip(files, origins, strict=True):
        if origin.tokenizer != origins[0].tokenizer:
            raise TraceError(
                f"{path} has tokens of another tokenizer than {files[0]}: {origin.tokenizer or 'unknown'}, "
                f"{origins[0].tokenizer or 'unknown'}",
                hint="analyze traces of one model family at a time",
            )
    if not responses:
        raise TraceError(f"{places[0]} has trace files without responses", hint=HINT)
    return TraceFiles(files, tuple(origins), responses)


def _files_at(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise TraceError(f"{place} is not there", hint=HINT)
    inside = place / "traces"
    found = sorted((inside if inside.is_dir() else place).glob("*.parquet"))
    if not found:
        raise TraceError(f"{place} has no trace files (*.parquet)", hint=HINT)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    import pyarrow.parquet

    with _damage_of(path):
        file = pyarrow.parquet.ParquetFile(path)
    with file:
        yield file


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise TraceError(
            f"{path} cannot be read as Parquet: {first_line(error)}", hint="is it complete? " + HINT
        ) from error


def _origin(path: Path, schema: pyarrow.Schema) -> Origin:
    """What the file says of itself; nothing if another program wrote it again, which keeps the columns alone."""
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        return Origin()
    try:
        return Origin.decoded(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: its metadata is not that of traces: {str(error)[:200]}", hint=HINT) from error


def _without(name: str) -> str:
    if name == "entropy":
        return "compute them with `megatron-fork analyze rescore`"
    return f"only traces with {name} can be used here"
