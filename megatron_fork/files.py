"""Files and paths: files are replaced in one step or not at all; users' paths may have `~`, their text a byte order mark."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UTF8 = "utf-8-sig"
"""UTF-8 with or without the byte order mark that some editors write."""
# Linux's limits, in bytes.
_LONGEST_PATH, _LONGEST_NAME = 4096, 255
_ASIDE = ".partial"
# Characters that a file's name may not hold, and how much of a text becomes a part of one.
_NO_NAME, _PART_OF_NAME = re.compile(r"[/\x00-\x1f\ud800-\udfff]"), 120


def replace_file(path: Path, text: str) -> None:
    """Write `path` so that a reader, even after a crash, sees either the old text or the new one; raises `OSError`."""
    aside = path.with_name(path.name + _ASIDE)  # always the same name: a killed process's file is overwritten
    write_flushed(aside, text)
    aside.replace(path)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A folder to write into; it replaces `path` at the end, or is removed if something fails."""
    aside = path.with_name(path.name + _ASIDE)
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        flush_folder(aside)
        shutil.rmtree(path, ignore_errors=True)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_flushed(path: Path, text: str) -> None:
    """Write a file and flush it to the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def as_file_name(text: str) -> str:
    """The text as part of a file's name: one that any folder can hold, with room for more before or behind it."""
    return _NO_NAME.sub("_", text).encode()[:_PART_OF_NAME].decode(errors="ignore")


def at_home(path: str) -> str:
    """The path with a leading `~` replaced by the home that it names; unchanged if there is no such user."""
    return os.path.expanduser(path)  # noqa: PTH111, since pathlib raises where there is no such user


def can_be_path(text: str) -> bool:
    """Whether a file system can have such a path; the system refuses any use of others."""
    try:
        whole = os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return b"\0" not in whole and len(whole) < _LONGEST_PATH and all(len(p) <= _LONGEST_NAME for p in whole.split(b"/"))


def path_at_home(path: str) -> Path:
    """`at_home` for the command line: a shell does not replace `~` in quotes and in `--option=~/file`."""
    return Path(at_home(path))
