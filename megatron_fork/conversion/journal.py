"""The journal of a conversion: which tensors are wholly on the disk, so that the same conversion can go on from there.

It has a line for what the conversion is of, and one for each tensor with its place and checksum. A tensor gets its line after
its bytes are flushed: what has none, or is not as its line says, is written again.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_fork.errors import CheckpointError
from megatron_fork.files import flush_folder, replace_file

JOURNAL = "conversion.journal"
# What a kill may cost: bytes that are written, but neither flushed nor in the journal.
_BYTES_A_FLUSH = 256 << 20
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True)
class Part:
    """Where the bytes of a tensor are in the folder, and their checksum."""

    file: str
    start: int
    bytes: int
    sha256: str


class Journal:
    """The tensors of a folder that are on the disk; may be shared by threads."""

    def __init__(self, folder: Path, subject: Mapping[str, Any]) -> None:
        """Read the journal of `folder`; raises `CheckpointError` if the folder holds anything but a conversion of `subject`."""
        self.folder = folder
        self._file = folder / JOURNAL
        self._subject = json.loads(json.dumps(subject))
        self.parts = _read(self._file, self._subject)
        """By the name of the tensor, as the lines have it: `keep_intact` looks whether it is so."""
        self._unflushed: dict[str, Part] = {}
        self._lock = threading.Lock()
        self._flusher = ThreadPoolExecutor(1)
        self._running: Future[None] = self._flusher.submit(lambda: None)
        self._failure: OSError | None = None

    def keep_intact(self, belongs: Callable[[str, Part], bool], *, workers: int) -> None:
        """Keep the tensors that are where they belong and as their lines say; reads every byte of them.

        Every conversion calls it before the first `add`: it begins the journal, or mends one that a crash cut.
        """
        expected = {name: part for name, part in self.parts.items() if belongs(name, part)}
        with ThreadPoolExecutor(workers) as pool:
            found = pool.map(lambda part: _checksum(self.folder / part.file, part), expected.values())
            self.parts = {
                name: part
                for (name, part), sha256 in zip(expected.items(), found, strict=True)
                if sha256 == part.sha256
            }
        replace_file(self._file, json.dumps(self._subject) + "\n" + _lines(self.parts))

    def add(self, name: str, part: Part) -> None:
        """A tensor is written: it is flushed and gets its line together with others, while the next are made.

        Raises `OSError` if flushing others before it failed.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._unflushed[name] = part
            if sum(each.bytes for each in self._unflushed.values()) >= _BYTES_A_FLUSH:
                self._running.result()  # one at a time: no more than two groups are on the way to the disk
                added, self._unflushed = self._unflushed, {}
                self._running = self._flusher.submit(self._flush, added)

    def flush(self) -> None:
        """Flush what was added, and then its lines; raises `OSError` if any flush failed."""
        with self._lock:
            added, self._unflushed = self._unflushed, {}
            self._running = self._flusher.submit(self._flush, added)
            self._running.result()

    def _flush(self, added: Mapping[str, Part]) -> None:
        if self._failure is not None:
            raise self._failure  # the system tells a failed flush once: another of the same file would seem to succeed
        try:
            flush_files(self.folder, {part.file for part in added.values()})
            with self._file.open("a", encoding="utf-8") as file:
                file.write(_lines(added))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._failure = error
            raise
        self.parts.update(added)

    def flush_others(self) -> None:
        """Flush every file in which there is no tensor of the journal."""
        files = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}
        flush_files(self.folder, files - {part.file for part in self.parts.values()})


def _read(file: Path, subject: Mapping[str, Any]) -> dict[str, Part]:
    """The tensors of a journal, up to the first line that a crash cut."""
    aside = file.parent
    if not file.is_file():
        if others := sorted(path.name for path in aside.iterdir() if path.name != file.name + ".partial"):
            raise CheckpointError(
                f"{aside} holds {others[0]}, and no journal of a conversion that could be taken up",
                hint="remove it if nobody needs it, or let --restart do so; or choose another OUT",
            )
        return {}
    begun, *records = [_parsed(line) for line in file.read_bytes().split(b"\n")]
    if begun != subject:
        raise CheckpointError(
            f"{aside} was begun by another conversion: {_first_difference(begun, subject)}",
            hint="give the source and the options of then; or let --restart remove it and begin anew",
        )
    parts = {}
    for record in records:
        if set(record) != {"tensor", "file", "start", "bytes", "sha256"}:
            break
        name = record.pop("tensor")
        parts[name] = Part(**record)
    return parts


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _first_difference(begun: Mapping[str, Any], subject: Mapping[str, Any]) -> str:
    name = next(name for name in sorted({*begun, *subject}) if begun.get(name) != subject.get(name))
    then, now = begun.get(name), subject.get(name)
    if isinstance(then, dict) and isinstance(now, dict):
        file = next(file for file in sorted({*then, *now}) if then.get(file) != now.get(file))
        return f"the source's {file} is not the same"
    return f"{name} was {then}, and is now {now}"


def _lines(parts: Mapping[str, Part]) -> str:
    return "".join(json.dumps({"tensor": name, **asdict(part)}) + "\n" for name, part in parts.items())


def _checksum(file: Path, part: Part) -> str:
    """SHA-256 of the bytes that are there, fewer if the file is shorter; empty if there is no file."""
    if not file.is_file():
        return ""
    found, left = hashlib.sha256(), part.bytes
    with file.open("rb", buffering=0) as stream:
        stream.seek(part.start)
        while left and (chunk := stream.read(min(left, _CHUNK_BYTES))):
            found.update(chunk)
            left -= len(chunk)
    return found.hexdigest()


def flush_files(root: Path, names: Iterable[str]) -> None:
    """Flush files below `root`, and their names in their folders, to the disk."""
    paths = {root / name for name in names}
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for folder in {path.parent for path in paths}:
        flush_folder(folder)
