"""Files and paths: replaced in one step or not at all; as users give them, with `~` and byte order marks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UTF8 = "utf-8-sig"
"""UTF-8 with or without the mark that some editors write."""
# Linux's limits, in bytes.
_LONGEST_PATH, _LONGEST_NAME = 4096, 255
_ASIDE = ".partial"


def replace_file(path: Path, text: str) -> None:
    """Write `path` so that a reader, also after a crash, sees the old text or the new one; raises `OSError`."""
    aside = path.with_name(path.name + _ASIDE)  # always the same: what a killed process leaves is overwritten
    write_flushed(aside, text)
    aside.replace(path)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `path` at the end, or goes away when something fails."""
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
    """Write a file, and bring it to the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def at_home(path: str) -> str:
    """A path whose leading `~` is the home that it names; as it is where it names none."""
    return os.path.expanduser(path)  # noqa: PTH111, since pathlib raises where there is no such user


def can_be_path(text: str) -> bool:
    """Whether a file system may have such a name; others are refused by the system at the first question about them."""
    try:
        whole = os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return b"\0" not in whole and len(whole) < _LONGEST_PATH and all(len(p) <= _LONGEST_NAME for p in whole.split(b"/"))


def path_at_home(path: str) -> Path:
    """The same, as the command line reads its paths: a shell leaves `~` alone in quotes and in `--option=~/file`."""
    return Path(at_home(path))
