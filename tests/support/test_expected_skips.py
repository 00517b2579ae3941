"""With the switch on, a skip passes only on a machine that lacks what the list says it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import PROJECT
from support.expected_skips import EXPECTED, SWITCH

HOOKS = "from support.expected_skips import pytest_addoption, pytest_make_collect_report, pytest_runtest_makereport"
SLURM = "import pytest\ndef test_it(): pytest.skip('no Slurm controller answers here')"
SKIPS = {
    "in a test": "import pytest\ndef test_it(): pytest.skip('not today')",
    "by a mark": "import pytest\n@pytest.mark.skipif(True, reason='not today')\ndef test_it(): pass",
    "in a fixture": "import pytest\n@pytest.fixture\ndef it(): pytest.skip('not today')\ndef test_it(it): pass",
    "of a package": "import pytest\ndef test_it(): pytest.importorskip('no_such_package', reason='not today')",
    "of a file": "import pytest\npytest.importorskip('no_such_package', reason='not today')\ndef test_it(): pass",
    "of an empty list": "import pytest\n@pytest.mark.parametrize('it', [])\ndef test_it(it): pass",
}


def outcome(folder: Path, where: str, source: str, *words: str, programs: str = "") -> tuple[int, str]:
    """(exit code, output) of pytest on `source` as the file `where`, with the `programs` that are found there."""
    path = folder / where
    path.parent.mkdir(parents=True)
    path.write_text(source)
    (folder / "tests" / "conftest.py").write_text(HOOKS)
    (folder / "pytest.ini").write_text("[pytest]\ntestpaths = tests\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "tests"), "PATH": programs},
        timeout=120,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("how", SKIPS)
def test_a_skip_that_nobody_expects_fails(tmp_path: Path, how: str) -> None:
    code, said = outcome(tmp_path / "on", "tests/rewards/test_it.py", SKIPS[how], SWITCH)
    assert code != 0 and "expected_skips.py does not expect it on this machine" in said
    assert "not today" in said or how == "of an empty list"


@pytest.mark.parametrize("words", [(), ("-n", "2"), ("-n", "2", SWITCH)], ids=str)
def test_the_switch_decides_and_reaches_all_workers(tmp_path: Path, words: tuple[str, ...]) -> None:
    code, said = outcome(tmp_path, "tests/rewards/test_it.py", SKIPS["in a test"], *words)
    assert (code == 1) == ("does not expect it" in said) == (SWITCH in words)


def test_an_expected_skip_stays_one(tmp_path: Path) -> None:
    code, said = outcome(tmp_path, "tests/rewards/test_it.py", SLURM, SWITCH)
    assert code == 0 and "1 skipped" in said


def test_elsewhere_the_same_reason_is_not_expected(tmp_path: Path) -> None:
    code, _ = outcome(tmp_path, "tests/data/test_it.py", SLURM, SWITCH)
    assert code == 1


def test_a_machine_that_lacks_nothing_has_no_reason_to_skip(tmp_path: Path) -> None:
    for name in ("srun", "sinfo"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 0\n")
        (tmp_path / name).chmod(0o755)
    code, said = outcome(tmp_path, "tests/rewards/test_it.py", SLURM, SWITCH, programs=str(tmp_path))
    assert code == 1 and "no Slurm controller answers here" in said


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    code, said = outcome(tmp_path, "tests/test_it.py", "import pytest\ndef test_it(): pytest.xfail('known')", SWITCH)
    assert code == 0 and "1 xfailed" in said


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda each: each.reason)
def test_every_reason_in_the_list_is_given_by_a_test(expected) -> None:
    texts = [path.read_text() for path in (PROJECT / expected.where).rglob("*.py")]
    texts += [
        path.read_text() for path in (PROJECT / "tests" / "support").glob("*.py") if path.name != "expected_skips.py"
    ]
    assert any(expected.reason in text for text in texts)
    assert expected.lacks() in (True, False)
