"""Paths and text files as users give them: `~` is a home, and a byte order mark is no part of a text."""

from __future__ import annotations

import os
from pathlib import Path

UTF8 = "utf-8-sig"
"""UTF-8 with or without the mark that some editors write."""


def at_home(path: str) -> str:
    """A path whose leading `~` is the home that it names; as it is where it names none."""
    return os.path.expanduser(path)  # noqa: PTH111, since pathlib raises where there is no such user


def path_at_home(path: str) -> Path:
    """The same, as the command line reads its paths: a shell leaves `~` alone in quotes and in `--option=~/file`."""
    return Path(at_home(path))
