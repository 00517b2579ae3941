"""Reads trace files in parts of about a million tokens, checked: what cannot be what its column says is an error by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_fork.errors import TraceError
from megatron_fork.traces.schema import BY_NAME, COLUMNS, KINDS, METADATA_KEY, Origin, arrow_schema

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

_HINT = "give a file that `megatron-fork train`, `generate` or `evaluate` wrote; docs/traces.md names its columns"


@dataclass(frozen=True)
class Traces:
    """Responses of one file, or a part of them, with the columns that were asked for."""

    table: pyarrow.Table
    origin: Origin
    where: str
    """The file, for messages."""

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
        return Traces(self.table.filter(self._column(name).is_valid()), self.origin, self.where)

    def with_flat(self, **columns: np.ndarray[Any, np.dtype[Any]] | None) -> Traces:
        """The same responses with other values in columns with one entry a token, as `flat` gives them; None: without any."""
        import pyarrow

        offsets = pyarrow.array(np.concatenate([[0], np.cumsum(self.lengths)]), pyarrow.int32())
        table = self.table
        for name, values in columns.items():
            kind = arrow_schema().field(name).type
            if values is None:
                column = _nulls(name, len(self))
            else:
                column = pyarrow.ListArray.from_arrays(offsets, pyarrow.array(values, kind.value_type), type=kind)
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, column) if place >= 0 else table.append_column(name, column)
        return Traces(table, self.origin, self.where)

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

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[Traces]:
        """The responses in parts of one row group each; `columns`: only these, `tokens` always among them.

        Raises `TraceError` for a damaged file, and for values that a column cannot have.
        """
        names = [column.name for column in COLUMNS] if columns is None else list(dict.fromkeys(["tokens", *columns]))
        for path, origin in zip(self.files, self.origins, strict=True):
            with _opened(path) as file:
                present = [name for name in names if name in file.schema_arrow.names]
                for group in range(file.num_row_groups):
                    with _damage_of(path):
                        table = file.read_row_group(group, columns=present)
                    for name in (name for name in names if name not in present):
                        table = table.append_column(name, _nulls(name, table.num_rows))
                    with _damage_of(path):
                        table = table.select(names).cast(_schema_of(names))
                    _check(table, str(path))
                    yield Traces(table, origin, str(path))


def open_traces(*places: Path) -> TraceFiles:
    """The trace files at `places`: files, folders of them, or folders of runs and evaluations, which have `traces/`.

    Raises `TraceError` if there are none, if one is no trace file, or if their tokens are of different tokenizers.
    """
    files = tuple(file for place in places for file in _files_at(place))
    origins, responses = [], 0
    for path in files:
        with _opened(path) as file:
            responses += file.metadata.num_rows
            origins.append(_origin(path, file.schema_arrow))
            _check_columns(path, file.schema_arrow)
    for path, origin in zip(files, origins, strict=True):
        if origin.tokenizer != origins[0].tokenizer:
            raise TraceError(
                f"{path} has tokens of another tokenizer than {files[0]}: {origin.tokenizer or 'unknown'}, "
                f"{origins[0].tokenizer or 'unknown'}",
                hint="analyze traces of one model family at a time",
            )
    if not responses:
        raise TraceError(f"{places[0]} has trace files without responses", hint=_HINT)
    return TraceFiles(files, tuple(origins), responses)


def _files_at(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise TraceError(f"{place} is not there", hint=_HINT)
    inside = place / "traces"
    found = sorted((inside if inside.is_dir() else place).glob("*.parquet"))
    if not found:
        raise TraceError(f"{place} has no trace files (*.parquet)", hint=_HINT)
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
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise TraceError(f"{path} cannot be read as Parquet: {line}", hint="is it complete? " + _HINT) from error


def _origin(path: Path, schema: pyarrow.Schema) -> Origin:
    """What the file says of itself; nothing if another program wrote it again, which keeps the columns alone."""
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        return Origin()
    try:
        return Origin.decoded(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: its metadata is not that of traces: {str(error)[:200]}", hint=_HINT) from error


def _check_columns(path: Path, schema: pyarrow.Schema) -> None:
    missing = [column.name for column in COLUMNS if column.required and column.name not in schema.names]
    if missing:
        raise TraceError(f"{path} has no column {', '.join(missing)}", hint=_HINT)
    for field in schema:
        if field.name in BY_NAME and not _fits(field.type, arrow_schema().field(field.name).type):
            raise TraceError(
                f"{path}: column {field.name} holds {field.type}, not {BY_NAME[field.name].type}", hint=_HINT
            )


def _fits(found: pyarrow.DataType, wanted: pyarrow.DataType) -> bool:
    """Whether a column is of the wanted kind; other programs write wider numbers, large lists and dictionaries."""
    import pyarrow.types as kinds

    if kinds.is_null(found):
        return True
    if kinds.is_dictionary(found):
        return _fits(found.value_type, wanted)
    if kinds.is_list(wanted):
        return (kinds.is_list(found) or kinds.is_large_list(found)) and _fits(found.value_type, wanted.value_type)
    alike = (kinds.is_integer, kinds.is_floating, kinds.is_boolean)
    if kinds.is_string(wanted):
        return bool(kinds.is_string(found) or kinds.is_large_string(found))
    if kinds.is_binary(wanted):
        return bool(kinds.is_binary(found) or kinds.is_large_binary(found))
    return any(kind(found) and kind(wanted) for kind in alike)


def _schema_of(names: Sequence[str]) -> pyarrow.Schema:
    import pyarrow

    return pyarrow.schema([arrow_schema().field(name).with_nullable(True) for name in names])


def _nulls(name: str, rows: int) -> pyarrow.Array:
    import pyarrow

    return pyarrow.nulls(rows, arrow_schema().field(name).type)


def _check(table: pyarrow.Table, where: str) -> None:
    """Raise `TraceError` for the first response with a value that its column cannot have."""
    lengths = _lengths(table, "tokens")
    for name in table.column_names:
        column, about = table.column(name), BY_NAME[name]
        if about.required and column.null_count:
            raise TraceError(f"{where}: {column.null_count:,} responses have no {name}", hint=_HINT)
        if about.per_token:
            wrong = np.flatnonzero((_lengths(table, name) != lengths) & ~_is_null(column))
            if len(wrong):
                raise TraceError(
                    f"{where}, response {wrong[0]}: {name} has {_lengths(table, name)[wrong[0]]} entries for "
                    f"{lengths[wrong[0]]} tokens",
                    hint=_HINT,
                )
        _check_values(column, name, where)


def _check_values(column: pyarrow.ChunkedArray, name: str, where: str) -> None:
    import pyarrow.compute as compute

    values = column.combine_chunks()
    values = values.flatten() if BY_NAME[name].type.startswith("list") else values
    if values.null_count and BY_NAME[name].type.startswith("list"):
        raise TraceError(f"{where}: {name} has {values.null_count:,} empty entries", hint=_HINT)
    if name == "kind":
        unknown = set(compute.unique(values).to_pylist()) - set(KINDS)
        if unknown:
            raise TraceError(f"{where}: kind={min(unknown)!r} is none of {', '.join(KINDS)}", hint=_HINT)
    elif name in ("tokens", "prompt_tokens", "sample", "step", "weight_version", "entropy"):
        _check_range(values, name, where, low=-1e-4 if name == "entropy" else 0)
    elif name in ("logprob", "reward", "advantage"):
        _check_range(values, name, where, low=-np.inf)


def _check_range(values: pyarrow.Array, name: str, where: str, *, low: float) -> None:
    """Rounding may leave an entropy just below 0; nothing may be NaN, and only a log-prob infinite."""
    numbers = values.drop_null().to_numpy(zero_copy_only=False)
    wrong = np.isnan(numbers) | (numbers < low) if numbers.dtype.kind == "f" else numbers < low
    if numbers.dtype.kind == "f" and name != "logprob":
        wrong |= np.isinf(numbers)
    if wrong.any():
        raise TraceError(f"{where}: {name} holds {numbers[wrong][0]}", hint=_HINT)


def _lengths(table: pyarrow.Table, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    import pyarrow.compute

    lengths = pyarrow.compute.list_value_length(table.column(name))
    return pyarrow.compute.fill_null(lengths, -1).to_numpy().astype(np.int64)


def _is_null(column: pyarrow.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    import pyarrow.compute

    return pyarrow.compute.is_null(column).to_numpy().astype(bool)


def _without(name: str) -> str:
    if name == "entropy":
        return "compute them with `megatron-fork analyze rescore`"
    return f"only traces with {name} can be used here"
