"""Every value of another trainer's file appears exactly once, whatever it is, and the fields that it becomes exist.

Files are made of any of a table's names, names that it does not know, and values of every kind.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.config import RunConfig, load_config
from megatron_fork.errors import ConfigError, MegatronForkError
from megatron_fork.planning import PEERS, translate
from megatron_fork.recipe import flat

FIELDS = dict(flat(asdict(RunConfig())))
VALUES = st.one_of(
    st.integers(-2, 70000),
    st.sampled_from(
        [0, 1, 2, 8, 16, 0.2, 0.28, 1e-6, True, False, None, "grpo", "token-mean", "vllm", "full", "constant"]
    ),
    st.text("abc./-", min_size=1, max_size=6),
    st.lists(st.integers(0, 3), max_size=3),
)


def names(peer: str) -> list[str]:
    table = PEERS[peer]
    known = [entry.theirs for entry in table.counterparts]
    return [*known, *(each.theirs for each in table.missing if "*" not in each.theirs), *_unknown(peer)]


def _unknown(peer: str) -> list[str]:
    return ["--not-there", "--nor-there"] if peer == "slime" else ["not.there", "nor.there"]


def content(peer: str, values: dict[str, Any]) -> tuple[str, str]:
    """A file's name and text with these values, as the trainer writes them."""
    if peer == "slime":
        words = [
            f"{name}{'' if value is True else '=' + shlex.quote(json.dumps(value))}" for name, value in values.items()
        ]
        return "run.sh", "python train.py " + " \\\n  ".join(words)
    return "a.json", json.dumps(values)


@pytest.mark.parametrize("peer", PEERS)
def test_every_value_appears_once(peer: str) -> None:
    @settings(max_examples=15, deadline=None)
    @given(st.dictionaries(st.sampled_from(names(peer)), VALUES, min_size=1, max_size=25))
    def check(values: dict[str, Any]) -> None:
        name, text = content(peer, values)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, name)
            file.write_text(text)
            try:
                found = translate(peer, file)
            except ConfigError as error:
                assert any(each in error.message for each in values) and error.hint
                return
            written = [row for row in found.rows if row.kind in ("mapped", "unused", "missing")]
            assert sorted(row.theirs for row in written) == sorted(values)
            assert all(row.ours for row in written if row.kind == "mapped")
            assert all(not row.ours and row.note for row in written if row.kind != "mapped")
            assert all(row.warns for row in written if row.kind == "missing")
            assert set(found.fields) <= set(FIELDS)
            once = [(field, json.dumps(value)) for row in found.rows for field, value in row.ours.items()]
            assert len({field for field, _ in once}) == len(set(once)), "two rows set a field to different values"
            recipe = Path(folder, "mine.yaml")
            recipe.write_text(found.recipe())
            try:
                config = load_config(recipe, [] if "model.path" in found.fields else ["model.path=M"])
            except MegatronForkError as error:
                assert error.hint
                return
            read = dict(flat(asdict(config)))
            assert {field: read[field] for field in found.fields} == found.fields

    check()


@pytest.mark.parametrize("peer", PEERS)
def test_tables_name_fields_that_exist_and_each_name_once(peer: str) -> None:
    table = PEERS[peer]
    for entry in table.counterparts:
        assert set(entry.ours) <= set(FIELDS), entry.theirs
        assert entry.ours, entry.theirs
    for own in table.own:
        assert own.ours in FIELDS and own.note
    theirs = [entry.theirs for entry in table.counterparts]
    assert len(theirs) == len(set(theirs))
    patterns = [each.theirs for each in table.missing]
    assert len(patterns) == len(set(patterns))
    assert not set(patterns) & set(theirs), "a name has a counterpart and has none"


@pytest.mark.parametrize("peer", PEERS)
def test_any_text_is_read_or_refused(peer: str) -> None:
    alphabet = st.text("ab=.-+~ \n\\'\"$(){}[]#<&|;:,*!@0189", max_size=80)

    @settings(max_examples=60, deadline=None)
    @given(alphabet, st.sampled_from(["a.sh", "a.yaml", "a.py", "a.json"]))
    def check(text: str, name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, name)
            file.write_text(text)
            try:
                translate(peer, file)
            except ConfigError as error:
                assert error.hint

    check()
