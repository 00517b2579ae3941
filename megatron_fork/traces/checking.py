"""Which columns of a trace file are taken for what they should be, and which values they cannot have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_fork.errors import TraceError
from megatron_fork.traces.schema import BY_NAME, COLUMNS, KINDS, MOST_LOGPROB, arrow_schema

if TYPE_CHECKING:
    import pyarrow

HINT = "give a file that `megatron-fork train`, `generate` or `evaluate` wrote; docs/traces.md names its columns"
# Of columns with numbers, the least and the most that one may be. Rounding may leave an entropy just below 0.
_LIMITS = dict.fromkeys(("tokens", "prompt_tokens", "sample", "step", "weight_version"), (0.0, np.inf))
_LIMITS |= {"entropy": (-1e-4, np.inf), "logprob": (-np.inf, MOST_LOGPROB)}
_LIMITS |= {"reward": (-np.inf, np.inf), "advantage": (-np.inf, np.inf)}


def check_columns(path: Path, schema: pyarrow.Schema) -> None:
    """Raise `TraceError` for a column that is missing, is there twice, or holds something else."""
    missing = [column.name for column in COLUMNS if column.required and column.name not in schema.names]
    if missing:
        raise TraceError(f"{path} has no column {', '.join(missing)}", hint=HINT)
    twice = [name for name, count in Counter(schema.names).items() if count > 1 and name in BY_NAME]
    if twice:
        raise TraceError(f"{path} has the column {twice[0]} more than once", hint="write it with one of them")
    for field in schema:
        if field.name in BY_NAME and not _fits(field.type, arrow_schema().field(field.name).type, field.name):
            raise TraceError(
                f"{path}: column {field.name} holds {field.type}, not {BY_NAME[field.name].type}", hint=HINT
            )


def _fits(found: pyarrow.DataType, wanted: pyarrow.DataType, name: str) -> bool:
    """Whether a column is of the wanted kind; other programs write wider numbers, other lists, views and dictionaries.

    Where some rows have no value they write whole numbers as floats, which are taken if they are whole.
    """
    import pyarrow.types as kinds

    if kinds.is_null(found):
        return True
    if kinds.is_dictionary(found):
        return _fits(found.value_type, wanted, name)
    if kinds.is_list(wanted):
        lists = (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list)
        whole = kinds.is_integer(wanted.value_type)
        return (
            any(kind(found) for kind in lists)
            and _fits(found.value_type, wanted.value_type, name)
            and not (whole and kinds.is_floating(found.value_type))
        )
    texts = (kinds.is_string, kinds.is_large_string, kinds.is_string_view)
    if kinds.is_string(wanted):
        return any(kind(found) for kind in texts)
    if kinds.is_binary(wanted):
        return any(kind(found) for kind in (*texts, kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view))
    if kinds.is_boolean(found):
        return bool(kinds.is_boolean(wanted)) or name == "reward"
    return not kinds.is_boolean(wanted) and any(
        kind(found) for kind in (kinds.is_integer, kinds.is_floating, kinds.is_decimal)
    )


def conformed(table: pyarrow.Table, names: Sequence[str], where: str) -> pyarrow.Table:
    """The columns `names` of a table, of the schema's types; those that it has not are null.

    Raises `TraceError` for a value that the type cannot have.
    """
    import pyarrow

    columns, schema = [], arrow_schema()
    for name in names:
        kind = schema.field(name).type
        if name not in table.column_names:
            columns.append(pyarrow.chunked_array([pyarrow.nulls(table.num_rows, kind)]))
            continue
        try:
            column = table.column(name).cast(kind)
            if BY_NAME[name].type == "string":  # bytes that are no UTF-8 would be found when they are read
                column.validate(full=True)
        except (pyarrow.ArrowException, ValueError) as error:
            raise TraceError(f"{where}: column {name}: {first_line(error)}", hint=HINT) from error
        columns.append(column)
    return pyarrow.table(columns, pyarrow.schema([schema.field(name).with_nullable(True) for name in names]))


def check_values(table: pyarrow.Table, where: str, *, first: int) -> None:
    """Raise `TraceError` for the first response with a value that its column cannot have; `first`: the number of row 0."""
    lengths = _lengths(table, "tokens")
    for name in table.column_names:
        column, about = table.column(name), BY_NAME[name]
        if about.required and column.null_count:
            raise TraceError(f"{where}, response {first + _first(_is_null(column))} has no {name}", hint=HINT)
        if about.per_token:
            wrong = (_lengths(table, name) != lengths) & ~_is_null(column)
            if wrong.any():
                row = _first(wrong)
                raise TraceError(
                    f"{where}, response {first + row}: {name} has {_lengths(table, name)[row]} entries for "
                    f"{lengths[row]} tokens",
                    hint=HINT,
                )
        _check_entries(table, name, where, first)


def _check_entries(table: pyarrow.Table, name: str, where: str, first: int) -> None:
    """Of a column with a list in each row, all entries of all lists."""
    column = table.column(name).combine_chunks()
    is_list = BY_NAME[name].type.startswith("list")
    values = column.flatten() if is_list else column

    def response(place: int) -> str:
        """Where the entry at `place` of `values` is."""
        ends = np.cumsum(np.maximum(_lengths(table, name), 0)) if is_list else np.arange(1, len(values) + 1)
        return f"{where}, response {first + int(np.searchsorted(ends, place, side='right'))}"

    if is_list and values.null_count:
        place = _first(values.is_null().to_numpy(zero_copy_only=False))
        raise TraceError(f"{response(place)}: {name} has an empty entry", hint=HINT)
    if name == "kind":
        unknown = [place for place, kind in enumerate(values.to_pylist()) if kind not in KINDS]
        if unknown:
            kind = values[unknown[0]].as_py()
            raise TraceError(f"{response(unknown[0])}: kind={kind!r} is none of {', '.join(KINDS)}", hint=HINT)
    elif name in _LIMITS:
        low, high = _LIMITS[name]
        numbers = values.to_numpy(zero_copy_only=False)
        wrong = ~((numbers >= low) & (numbers <= high))  # NaN is neither
        if numbers.dtype.kind == "f" and name != "logprob":
            wrong |= np.isinf(numbers)
        if values.null_count:
            wrong &= values.is_valid().to_numpy(zero_copy_only=False)
        if wrong.any():
            raise TraceError(f"{response(_first(wrong))}: {name} holds {numbers[_first(wrong)]}", hint=HINT)


def first_line(error: Exception) -> str:
    """What an error of Arrow says, short."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _first(wrong: Any) -> int:
    return int(np.flatnonzero(wrong)[0])


def _lengths(table: pyarrow.Table, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    import pyarrow.compute

    lengths = pyarrow.compute.list_value_length(table.column(name))
    return pyarrow.compute.fill_null(lengths, -1).to_numpy().astype(np.int64)


def _is_null(column: pyarrow.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    import pyarrow.compute

    return pyarrow.compute.is_null(column).to_numpy().astype(bool)
