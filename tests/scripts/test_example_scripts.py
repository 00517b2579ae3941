"""What `examples/scripts` shows can be copied: each script is run as its first lines say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import PROJECT, TINY
from support.trace_files import TOKENIZER, save_model

SCRIPTS = PROJECT / "examples" / "scripts"


def run(*words: object, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": f"{PROJECT}:{SCRIPTS}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_is_here() -> None:
    assert {path.name for path in SCRIPTS.iterdir() if path.is_file()} == {
        "custom_reward.py",
        "entropy_of_a_text.py",
        "first_comparison.sh",
    }


@pytest.mark.slow
def test_entropy_of_a_text(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    said = run(
        sys.executable,
        SCRIPTS / "entropy_of_a_text.py",
        "model",
        "from 7 to 31 : need +24 take op+10 get 17 .",
        folder=tmp_path,
    )
    rows = said.splitlines()
    entropies = [float(row.split()[0]) for row in rows]
    forks = [row.endswith("fork") for row in rows]
    assert len(rows) > 4 and sum(forks) >= 0.2 * len(rows)
    assert min(e for e, f in zip(entropies, forks, strict=True) if f) >= max(
        e for e, f in zip(entropies, forks, strict=True) if not f
    )


@pytest.mark.slow
def test_custom_reward(tmp_path: Path) -> None:
    words = [
        "train",
        "quickstart",
        *TINY,
        "train.steps=1",
        "rewards.kind=custom_reward:short_and_right",
        "run.folder=run",
    ]
    said = run(sys.executable, "-m", "megatron_fork", *words, folder=tmp_path)
    assert re.search(r"^train 1/1 ", said, re.MULTILINE)


@pytest.mark.slow
def test_first_comparison(tmp_path: Path) -> None:
    said = run("bash", SCRIPTS / "first_comparison.sh", "both", *TINY, "train.steps=1", folder=tmp_path)
    assert (tmp_path / "both" / "top.html").is_file() and "avg@4" in said
