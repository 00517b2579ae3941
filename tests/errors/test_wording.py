"""Sizes have the unit that fits them, commands survive a shell, addresses lose their passwords, refusals name their reason."""

import ast
import errno
import os
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fork.errors import command, masked, size, way_out

UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@given(st.integers(0, 2**50))
def test_a_size_is_never_rounded_away(count: int) -> None:
    number, unit = size(count).split(" ")
    assert float(number) * UNITS[unit] == pytest.approx(count, rel=0.006)
    assert float(number) <= 1000 or unit == "TiB"


@given(st.lists(st.text(st.characters(exclude_characters="`", exclude_categories=["Cs"])), min_size=1))
def test_a_command_is_what_a_shell_reads(words: list[str]) -> None:
    assert shlex.split(command(*words).strip("`")) == words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@node7:8000/v1", "http://***@node7:8000/v1"),
        ("servers=[http://a:b@x:1,https://c@y]", "servers=[http://***@x:1,https://***@y]"),
        ("http://node7:8000/a@b", "http://node7:8000/a@b"),
        ("me@host", "me@host"),
    ],
)
def test_no_password_is_shown(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.ENOTDIR, "there is a file where a folder is needed"),
        (errno.EEXIST, "there is a file where a folder is needed"),
        (errno.EACCES, "where this user may write"),
        (errno.EROFS, "where this user may write"),
        (errno.ENAMETOOLONG, "choose another"),
    ],
)
def test_space_is_asked_for_where_it_is_lacking(number: int, says: str) -> None:
    told = way_out(OSError(number, os.strerror(number)), elsewhere="run.folder")
    assert says in told and "run.folder" in told
    assert ("space" in told) == (number in (errno.ENOSPC, errno.EDQUOT))


def test_no_message_sends_to_a_file_that_is_not_installed() -> None:
    """A wheel has neither examples nor docs: what is only in the source tree is said to be the project's."""
    package = Path(__file__).parent.parent / "megatron_fork"
    found = []
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text())
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                for place in re.finditer(r"(.{0,14})\b(?:docs|examples|scripts)/", node.value):
                    if "the project's " not in place[1]:
                        found.append(f"{path.name}:{node.lineno} {node.value}")
    assert not found
