"""Packages that were carried along as wheels, for a machine that reaches no index."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gpu_check.errors import CheckError

# Never from a wheel: they belong to the machine's CUDA.
_THE_MACHINES = {"torch", "triton"}


def names_of(folder: Path) -> list[str]:
    """Distributions in a folder of wheels, under their normal names."""
    if not folder.is_dir():
        raise CheckError(f"--wheels {folder} is no folder", hint="`pip download --dest FOLDER ...` makes one")
    found = {re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower() for path in folder.glob("*.whl")}
    if not found:
        raise CheckError(f"--wheels {folder} holds no wheel", hint="`pip download --dest FOLDER ...` makes them")
    return sorted(found - _THE_MACHINES)


def installed(python: str, names: Sequence[str]) -> set[str]:
    """Those of `names` that the Python has already."""
    code = (
        "import importlib.metadata, re, sys\n"
        "have = {re.sub(r'[-_.]+', '-', d.name).lower() for d in importlib.metadata.distributions() if d.name}\n"
        "print(*(have & set(sys.argv[1:])))"
    )
    done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=False)
    return set(done.stdout.split())


def unpack(python: str, folder: Path, target: Path) -> tuple[list[str], str]:
    """Put what the Python lacks into `target`, a folder for PYTHONPATH; the names, and one line where it did not work."""
    absent = sorted(set(names_of(folder)) - installed(python, names_of(folder)))
    if not absent:
        return [], ""
    words = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade", "--disable-pip-version-check"]
    command = [python, *words, "--find-links", str(folder), "--target", str(target), *absent]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip says nothing"]
        return [], f"the wheels of {folder} could not be unpacked: {lines[-1]}"
    return absent, ""
