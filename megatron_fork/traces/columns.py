"""Responses as an Arrow table, made by columns: rows of many short responses would cost more than their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_fork.traces.schema import COLUMNS, TracedResponse, arrow_schema

if TYPE_CHECKING:
    import pyarrow

_NUMBERS = {"list<int32>": np.int32, "list<float>": np.float32, "list<bool>": np.bool_}


def table_of(responses: Sequence[TracedResponse]) -> pyarrow.Table:
    """The rows of responses, in their order, with all columns of the schema."""
    import pyarrow

    schema = arrow_schema()
    columns = []
    for column in COLUMNS:
        values = list(map(attrgetter(column.name), responses))
        if column.type in _NUMBERS:
            columns.append(_lists(values, schema.field(column.name).type, _numbers(_NUMBERS[column.type])))
        elif column.type == "list<binary>":
            columns.append(_lists(values, schema.field(column.name).type, _texts))
        elif column.type == "string":
            columns.append(_strings(values))
        else:
            columns.append(pyarrow.array(values, schema.field(column.name).type))
    return pyarrow.Table.from_arrays(columns, schema=schema)


def _lists(values: Sequence[Any], kind: Any, flat: Callable[[list[Any]], pyarrow.Array]) -> pyarrow.Array:
    """A list for each value, null for None; `flat` makes one array of all entries."""
    import pyarrow

    is_null = np.asarray([value is None for value in values])
    ends = np.cumsum([0 if value is None else len(value) for value in values])
    starts = pyarrow.array(np.concatenate([[0], ends]), pyarrow.int32())
    entries = flat([value for value in values if value is not None])
    return pyarrow.ListArray.from_arrays(starts, entries, type=kind, mask=pyarrow.array(is_null))


def _numbers(kind: Any) -> Callable[[list[Any]], pyarrow.Array]:
    import pyarrow

    return lambda lists: pyarrow.array(
        np.concatenate([np.zeros(0, kind), *(np.asarray(each, dtype=kind) for each in lists)])
    )


def _texts(lists: list[Sequence[str]]) -> pyarrow.Array:
    import pyarrow

    flat = list(chain.from_iterable(lists))
    with suppress(UnicodeEncodeError):
        return pyarrow.array(flat, pyarrow.string()).cast(pyarrow.binary())
    # Some have bytes that are not text by themselves.
    encoded = {text: text.encode("utf-8", "surrogateescape") for text in set(flat)}
    return pyarrow.array([encoded[text] for text in flat], pyarrow.binary())


def _strings(values: Sequence[str | None]) -> pyarrow.Array:
    import pyarrow

    with suppress(UnicodeEncodeError):
        return pyarrow.array(values, pyarrow.string())
    return pyarrow.array(list(map(_valid, values)), pyarrow.string())


def _valid(text: str | None) -> str | None:
    """The text without surrogates, which UTF-8 does not have."""
    return text if text is None or text.isascii() else text.encode("utf-8", "replace").decode()
