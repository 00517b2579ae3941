"""Writes trace files: complete or not at all, in row groups of about a million tokens, so that readers need little memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from megatron_fork.errors import TraceError
from megatron_fork.files import flush_folder
from megatron_fork.traces.columns import table_of
from megatron_fork.traces.schema import COLUMNS, METADATA_KEY, Origin, TracedResponse, arrow_schema

if TYPE_CHECKING:
    import pyarrow

    from megatron_fork.traces.reading import Traces

_TOKENS_PER_ROW_GROUP = 1 << 20
# Each number once as itself is smallest where it seldom repeats; texts and versions repeat.
_DICTIONARIES = [
    *("set", "prompt_id", "prompt", "answer", "reason", "finish_reason", "kind", "failure"),
    *("prompt_tokens.list.element", "tokens.list.element", "token_texts.list.element", "weight_version.list.element"),
]
_PER_TOKEN = tuple(column.name for column in COLUMNS if column.per_token and column.name != "tokens")
_lists_of = attrgetter(*_PER_TOKEN)


class TraceWriter:
    """Writes responses to a file that appears when the writer is closed without an error, and not before."""

    def __init__(self, path: Path, origin: Origin) -> None:
        """Raises `TraceError` if the folder cannot be written."""
        import pyarrow.parquet

        self.path = path
        self._aside = path.with_name(f".{path.name}.{os.getpid()}")
        self._schema = arrow_schema().with_metadata({METADATA_KEY: origin.encoded()})
        self._rows: list[TracedResponse] = []
        self._tokens = 0
        if path.is_dir():  # told before the work, not after it
            raise TraceError(f"traces {path} cannot be written: it is a folder", hint="name a file in it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = pyarrow.parquet.ParquetWriter(
                self._aside, self._schema, compression="zstd", use_dictionary=_DICTIONARIES
            )
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def add(self, response: TracedResponse) -> None:
        """Add a row; raises `TraceError` if a list has another length than `tokens`, or the disk fails."""
        for name, values in zip(_PER_TOKEN, _lists_of(response), strict=True):
            if values is not None and len(values) != len(response.tokens):
                raise TraceError(
                    f"{name} has {len(values)} entries for {len(response.tokens)} tokens of a response to prompt "
                    f"{response.prompt_id}",
                    hint="each response token needs one",
                )
        self._rows.append(response)
        self._tokens += len(response.tokens)
        if self._tokens >= _TOKENS_PER_ROW_GROUP:
            self._flush()

    def add_part(self, part: Traces) -> None:
        """Add the responses of a part that was read with all columns, as they are."""
        self._flush()
        self._write(part.table.select(self._schema.names).cast(self._schema))

    def close(self) -> None:
        """Finish the file and put it in its place."""
        self._flush()
        try:
            self._file.close()
            with self._aside.open("rb") as written:
                os.fsync(written.fileno())
            self._aside.replace(self.path)
            flush_folder(self.path.parent)
        except OSError as error:
            self.discard()
            raise self._failed(error) from error

    def discard(self) -> None:
        """Remove what was written; a file that was in its place stays."""
        self._rows.clear()
        with suppress(OSError):  # a full disk, which is why it is discarded
            self._file.close()
        self._aside.unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._rows:
            return
        table = table_of(self._rows).replace_schema_metadata(self._schema.metadata)
        self._rows.clear()
        self._tokens = 0
        self._write(table)

    def _write(self, table: pyarrow.Table) -> None:
        try:
            self._file.write_table(table, row_group_size=max(1, table.num_rows))
        except OSError as error:
            self.discard()
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> TraceError:
        return TraceError(
            f"traces {self.path} cannot be written: {error.strerror or error}",
            hint="choose another folder, or make room",
        )


def write_traces(path: Path, responses: Iterable[TracedResponse], origin: Origin) -> None:
    """Write all responses to `path`, which appears once it is complete. Raises `TraceError`."""
    with TraceWriter(path, origin) as writer:
        for response in responses:
            writer.add(response)
