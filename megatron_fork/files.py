"""Paths and text files as users give them: `~` is a home, and a byte order mark is no part of a text."""

from __future__ import annotations

import os
from pathlib import Path

UTF8 = "utf-8-sig"
"""UTF-8 with or without the mark that some editors write."""
# Linux's limits, in bytes.
_LONGEST_PATH, _LONGEST_NAME = 4096, 255


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
