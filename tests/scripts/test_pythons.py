"""An environment is made with the interpreter below an active virtual environment, which may be the one that is made anew."""

import os
import subprocess
import sys
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]


def found_with(first_on_path: Path) -> str:
    environment = {**os.environ, "PATH": f"{first_on_path}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHON", None)
    script = "source scripts/pythons.sh && find_python"
    done = subprocess.run(
        ["bash", "-c", script], cwd=_PROJECT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_an_active_environment_is_not_what_its_successor_stands_on(tmp_path: Path) -> None:
    active = tmp_path / "active"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(active)], check=True)
    found = Path(found_with(active / "bin"))
    assert tmp_path not in found.parents
    version = "import sys; print(sys.version_info[:2])"
    assert subprocess.run([found, "-c", version], capture_output=True, text=True, check=True).stdout.startswith("(3, 1")
