"""The check of a GPU machine runs whole at a CPU's size, says how each part ended, and fails where one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import PROJECT

PARTS = ["machine", "quickstart-fp32", "quickstart-bf16", "lm-head", "tests"]


def check(out: Path, *parts: str, python: str = sys.executable) -> tuple[int, list[dict]]:
    """(exit code, the records of the parts)."""
    command = ["bash", str(PROJECT / "scripts" / "gpu_check.sh"), "--smoke", str(out), *parts]
    done = subprocess.run(command, env={**os.environ, "PYTHON": python}, capture_output=True, text=True, timeout=400)
    assert (out / "results.jsonl").is_file(), done.stderr
    return done.returncode, [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_part_passes_at_a_cpus_size(tmp_path: Path) -> None:
    code, records = check(tmp_path)
    assert [record["part"] for record in records] == PARTS
    assert all(record["result"] == "passed" for record in records), [
        (tmp_path / f"{record['part']}.log").read_text()[-2000:] for record in records if record["result"] != "passed"
    ]
    assert code == 0
    figures = {record["part"]: record["figures"] for record in records[:4]}
    assert figures["machine"]["torch"] and figures["lm-head"]["ours"]["seconds"] > 0.0
    assert all(figures[f"quickstart-{name}"]["steps"] >= 6 for name in ("fp32", "bf16"))


@pytest.mark.slow
def test_a_part_that_fails_is_recorded_and_so_is_the_next(tmp_path: Path) -> None:
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nif [ "$2" = pytest ]; then exit 3; fi\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    code, records = check(tmp_path / "out", "tests", "lm-head", python=str(wrapper))
    assert code == 1
    assert [(record["part"], record["result"], record["exit_code"]) for record in records] == [
        ("lm-head", "passed", 0),
        ("tests", "failed", 3),
    ]
