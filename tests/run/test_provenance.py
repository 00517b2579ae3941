"""A run says where it came from: beside its settings, not among them, and without passwords."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from support.commands import QUICKSTART, TINY, run

from megatron_fork import __version__
from megatron_fork.config import differences, load_config, to_yaml
from megatron_fork.run import provenance as told

NEEDED = {"written", "command", "host", "device", "layout", "commit", "versions"}


@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t")), max_size=5))
@example(words=["\u2028", "\x85", "a\u2029b"])
def test_no_command_line_gets_out_of_its_comment(words: list[str]) -> None:
    config = load_config(QUICKSTART)
    text = told.as_comments({"command": " ".join(words)}) + to_yaml(config)
    assert differences(text, config) == []
    head = [line[2:] for line in text.splitlines() if line.startswith("#")]
    assert yaml.safe_load("\n".join(head))["provenance"]["command"] == " ".join(words)


def test_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["megatron-fork", "train", "a b", "rollout.servers=[http://me:secret@node:1]"])
    found = told.provenance("data 2")
    assert set(found) == NEEDED and found["layout"] == "data 2"
    assert found["versions"]["megatron-fork"] == __version__ and "torch" in found["versions"]
    assert "secret" not in json.dumps(found) and "'a b'" in str(found["command"])


def test_the_commit_is_this_projects_own(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    assert told.commit(tmp_path) is None
    git("init")
    (tmp_path / "other").write_text("another project's\n")
    (tmp_path / "megatron_fork").mkdir()
    (tmp_path / "megatron_fork" / "__init__.py").write_text("# installed into its environment\n")
    git("add", "other")
    git("commit", "-m", "first")
    assert told.commit(tmp_path) is None
    git("add", ".")
    git("commit", "-m", "second")
    found = told.commit(tmp_path)
    assert found is not None and len(found) == 40
    (tmp_path / "megatron_fork" / "__init__.py").write_text("# changed\n")
    assert told.commit(tmp_path) == f"{found} with changes"


@pytest.mark.slow
def test_a_run_keeps_it_and_is_resumed_by_what_it_prints(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    code, output = run("train", str(QUICKSTART), *TINY, "train.steps=1", f"run.folder={folder}")
    assert code == 0, output
    text = (folder / "resolved.yaml").read_text()
    head = yaml.safe_load("\n".join(line[2:] for line in text.splitlines() if line.startswith("#")))
    assert set(head["provenance"]) == NEEDED and "run.folder=" in head["provenance"]["command"]
    assert set(json.loads((folder / "summary.json").read_text())["provenance"]) == NEEDED
    assert "provenance" not in yaml.safe_load(text)
    code, output = run("train", str(folder / "resolved.yaml"), "train.steps=2")
    assert code == 0 and "resuming" in output
