"""The check of a GPU machine runs whole at a CPU's size; a part that fails, hangs or is wrong costs none of the others.

Parts that misbehave do so in a Python that does it for pytest alone: everything else in these checks is the real thing.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.commands import PROJECT

SCRIPT = str(PROJECT / "scripts" / "gpu_check.sh")
# Each benchmark once; the other parts differ from these in nothing but their size.
EVERY_BENCHMARK = ["kernels", "tests", "quickstart-bf16", "head-8b", "size-8b", "selection", "rollout"]


def started(*words: str, python: str = sys.executable, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", SCRIPT, *words],
        env={**os.environ, "PYTHON": python, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check(*words: str, python: str = sys.executable, **variables: str) -> tuple[int, str, str]:
    """(exit code, output, errors)."""
    process = started(*words, python=python, **variables)
    output, errors = process.communicate(timeout=900)
    return process.returncode, output, errors


def results(out: Path) -> dict[str, dict[str, Any]]:
    """By part, from both files, which agree."""
    parts = {each["part"]: each for each in json.loads((out / "results.json").read_text())["parts"]}
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {each["part"]: each for each in lines} == parts
    return parts


def python_that(folder: Path, does: str) -> str:
    """A Python that, asked for pytest, `does` something else; `$0` is it."""
    wrapper = folder / "python"
    wrapper.write_text(f'#!/bin/bash\nif [ "$2" = pytest ]; then\n{does}\nfi\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


@pytest.mark.slow
def test_every_part_passes_at_a_cpus_size(tmp_path: Path) -> None:
    code, output, errors = check("--smoke", "--out", str(tmp_path), *EVERY_BENCHMARK, "transformer-engine")
    found = results(tmp_path)
    assert (code, errors) == (0, ""), output
    assert {name: found[name]["result"] for name in EVERY_BENCHMARK} == dict.fromkeys(EVERY_BENCHMARK, "passed")
    assert found["transformer-engine"]["reason"] == "transformer_engine.pytorch is not installed"
    figures = {name: {each["name"]: each.get("value") for each in found[name]["figures"]} for name in EVERY_BENCHMARK}
    assert figures["tests"]["tests that pass"] > 60
    assert figures["quickstart-bf16"]["last step"] >= 5
    assert figures["head-8b"]["64 tokens, 20%: over the products alone"] > 0
    assert figures["size-8b"]["local layers, longest at 20%: response that fits"] == 256
    assert figures["selection"]["100,000 values, entropies: kth_largest"] > 0
    assert figures["rollout"]["embedded engine draws"] > 0
    # On a CPU nothing is reached or missed.
    assert not any("goal" in each for name in EVERY_BENCHMARK for each in found[name]["figures"])
    about = json.loads((tmp_path / "results.json").read_text())["about"]
    assert about["machine"]["packages"]["torch"] and about["smoke"] is True
    summary = (tmp_path / "summary.md").read_text()
    assert all(f"| {name} | passed |" in summary for name in EVERY_BENCHMARK)


@pytest.mark.slow
def test_a_part_that_fails_costs_none_of_the_others_and_missing_parts_follow(tmp_path: Path) -> None:
    out, broken = tmp_path / "out", python_that(tmp_path, "echo this went wrong; exit 3")
    code, output, _ = check("--smoke", "--out", str(out), "tests", "selection", python=broken)
    assert code == 1
    found = results(out)
    assert [(name, each["result"]) for name, each in found.items()] == [("tests", "failed"), ("selection", "passed")]
    assert found["tests"]["reason"] == "exit code 3: this went wrong" and found["tests"]["exit_code"] == 3
    assert "tests: failed" in output and "ends so:\n    this went wrong" in output
    # Both have a result: nothing is missing of them, and the failure still counts.
    before = (out / "results.jsonl").read_text()
    assert check("--smoke", "--out", str(out), "--missing", "tests", "selection")[0] == 1
    assert (out / "results.jsonl").read_text() == before


@pytest.mark.slow
def test_a_test_that_fails_is_wrong_and_named(tmp_path: Path) -> None:
    line = "tests/a/test_x.py::test_one[a b] FAILED   [ 50%]"
    broken = python_that(tmp_path, f"echo '{line}'; exit 1")
    code, output, _ = check("--smoke", "--out", str(tmp_path / "out"), "tests", python=broken)
    assert code == 1 and "WRONG: tests/a/test_x.py::test_one[a b] does not pass" in output
    assert results(tmp_path / "out")["tests"]["result"] == "wrong"


HANGS = """
echo "tests/a/test_x.py::test_one PASSED"
pids="$(dirname "$0")/pids"
sleep 300 & echo $! >>"$pids"
setsid sleep 300 & echo $! >>"$pids"
wait
"""


def are_gone(folder: Path) -> bool:
    return not any(Path(f"/proc/{pid}/cmdline").exists() for pid in (folder / "pids").read_text().split())


@pytest.mark.slow
def test_a_part_that_hangs_is_stopped_with_its_children_and_tried_again(tmp_path: Path) -> None:
    out, hanging = tmp_path / "out", python_that(tmp_path, HANGS)
    code, _, _ = check("--smoke", "--minutes", "0.5", "--out", str(out), "tests", python=hanging)
    assert code == 75
    found = results(out)["tests"]
    assert (found["result"], found["reason"]) == ("stopped", "its limit came first")
    assert found["figures"][0] == {"name": "tests that pass", "value": 1}
    assert are_gone(tmp_path)
    broken = python_that(tmp_path, 'echo "tests/a/test_x.py::test_one PASSED"; exit 0')
    assert check("--smoke", "--out", str(out), "--missing", "tests", python=broken)[0] == 0
    assert results(out)["tests"]["result"] == "passed"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_in_the_middle_leaves_whole_results(tmp_path: Path, number: int, code: int) -> None:
    out, hanging = tmp_path / "out", python_that(tmp_path, HANGS)
    process = started("--smoke", "--out", str(out), "tests", "selection", python=hanging)
    until = time.monotonic() + 200
    while not (tmp_path / "pids").is_file():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "the same command with --missing goes on" in errors
    assert {name: each["result"] for name, each in results(out).items()} == {"tests": "interrupted"}
    assert f"by {signal.Signals(number).name}" in results(out)["tests"]["reason"]
    assert (out / "summary.md").is_file() and are_gone(tmp_path), output


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (["heed"], "there is no part 'heed'\n  did you mean head?", 2),
        (["--minutes", "2"], "--minutes 2 is too few for 15 parts", 2),
        (["--minutes", "0.2", "tests"], "--minutes 0.2 is too few for 1 part: tests would get 0 s and needs", 2),
        (["--minutes", "-1"], "--minutes -1 is not above 0", 2),
        (["--minutes", "soon"], "invalid float value: 'soon'", 2),
        (["--out", "/proc/nothing"], "--out /proc/nothing cannot be written: ", 2),
        (["--missing"], "--missing goes on in a folder, and --out names none", 2),
        (["--smoke", "--wheels", "/nowhere", "--out", "OUT"], "--wheels /nowhere is no folder", 2),
        (["--out", "OUT"], "sees no GPU\n  set PYTHON to a torch for this machine's CUDA, or try", 1),
    ],
)
def test_bad_input_is_one_line_with_the_way_out(tmp_path: Path, words: list[str], says: str, code: int) -> None:
    words = [str(tmp_path) if word == "OUT" else word for word in words]
    found, output, errors = check(*words, CUDA_VISIBLE_DEVICES="")
    assert (found, output) == (code, "")
    assert says in errors and "Traceback" not in errors
    assert not (tmp_path / "results.json").exists()


def test_a_folder_that_holds_results_of_other_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"about": {"commit": "another", "smoke": true, "gpu": null}, "parts": []}')
    code, _, errors = check("--smoke", "--out", str(tmp_path), "selection")
    assert code == 2 and "is of another commit: 'another'" in errors


def test_a_python_that_is_too_old_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    code, _, errors = check("--smoke", python=str(old))
    assert code == 2 and "is not Python 3.11 or newer" in errors
