"""What this machine has, who else uses its GPU, and which parts can therefore not run, in one line each."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_check.errors import CheckError
from gpu_check.parts import TRANSFORMER_ENGINE, Part

# What other processes may hold or use of a GPU that is still called idle.
IDLE_GIB = 1.0
IDLE_PERCENT = 10
_OWN_GIB = 1.0
_PROBE_SECONDS = 120


@dataclass(frozen=True)
class Machine:
    """`missing` modules, by the name that is imported, with the reason; `busy` says who else is on the GPU."""

    python: str
    packages: dict[str, str | None]
    gpu: dict[str, Any] | None
    missing: dict[str, str]
    busy: str = ""
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def has(self, module: str) -> bool:
        """Of those that a part needs or may use."""
        return module not in self.missing

    @property
    def lines(self) -> list[str]:
        """What was found, in words."""
        shown = [f"{name} {number}" for name, number in self.packages.items() if number]
        lines = [f"Python {self.python} on {platform.machine()}, {self.cores} cores; {', '.join(shown)}"]
        if self.gpu:
            gpu = self.gpu
            others = f"; the first of {gpu['gpus']} is used" if gpu["gpus"] > 1 else ""
            lines.append(
                f"{gpu['name']}, compute capability {gpu['capability']}, CUDA {gpu['cuda']}, "
                f"{gpu['free_gib']:.0f} of {gpu['total_gib']:.0f} GiB free{others}"
            )
        return lines

    def as_data(self) -> dict[str, Any]:
        gpu = {name: value for name, value in (self.gpu or {}).items() if name != "free_gib"} or None
        return {"python": self.python, "processor": platform.machine(), "packages": self.packages, "gpu": gpu}

    def reason_against(self, part: Part, *, smoke: bool, even_if_busy: bool) -> str:
        """Why the part cannot run here, or nothing."""
        without = [name for name in part.needs if name in self.missing]
        if without:
            return f"{self.missing[without[0]]}"
        if smoke or self.gpu is None:
            return ""
        if self.busy and part.timed and not even_if_busy:
            return f"{self.busy}; --even-if-busy measures all the same"
        if self.gpu["total_gib"] < part.gibibytes:
            return f"the GPU has {self.gpu['total_gib']:.0f} GiB, and this shape takes {part.gibibytes:.0f}"
        if self.gpu["free_gib"] < part.gibibytes:
            return f"{self.gpu['free_gib']:.0f} GiB of the GPU are free, and this shape takes {part.gibibytes:.0f}"
        return ""


def look(python: str, project: Path, parts: Sequence[Part], *, smoke: bool, variables: Mapping[str, str]) -> Machine:
    """Raise `CheckError` where nothing can run: no torch, or no GPU."""
    usage = "" if smoke else others_on_gpu()
    modules = sorted({name for part in parts for name in part.needs} | {"torch", TRANSFORMER_ENGINE})
    found = _probe([python, str(Path(__file__).with_name("probe.py"))], "cpu" if smoke else "cuda", modules, variables)
    missing = {name: f"{name} is not installed" for name in found["missing"]}
    if "torch" in missing:
        raise CheckError(f"{python} has no torch", hint="set PYTHON to one that has", exit_code=1)
    if not smoke and found["gpu"] is None:
        raise CheckError(
            f"{python} has torch {found['packages']['torch']}, and it sees no GPU",
            hint="set PYTHON to a torch for this machine's CUDA, or try the parts on a CPU with --smoke",
            exit_code=1,
        )
    # A compiled package may be there and not fit: only its import tells, and it may crash.
    for name in (TRANSFORMER_ENGINE, *(("triton",) if "triton" in modules and not smoke else ())):
        if name not in missing and (error := _import_error(python, name, variables)):
            missing[name] = f"{name} does not import: {error}"
    gpu = found["gpu"]
    # Where nvidia-smi is not there, as in many containers; the probe's own context is in it.
    if gpu and not usage and gpu["total_gib"] - gpu["free_gib"] > IDLE_GIB + _OWN_GIB:
        usage = f"the GPU is busy: {gpu['total_gib'] - gpu['free_gib']:.1f} GiB held by other processes"
    return Machine(found["python"], found["packages"], gpu, missing, usage)


def _probe(command: list[str], device: str, modules: Sequence[str], variables: Mapping[str, str]) -> dict[str, Any]:
    done = _run([*command, device, *modules], variables)
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CheckError(
            f"{command[0]} cannot tell what this machine has: {last}", hint="set PYTHON to a working one", exit_code=1
        ) from None
    return found


def _import_error(python: str, module: str, variables: Mapping[str, str]) -> str:
    """The last line of what the import says, or the signal that ended it; nothing where it works."""
    done = _run([python, str(Path(__file__).with_name("probe.py")), "import", module], variables)
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return lines[-1] if lines and done.returncode > 0 else f"it ends with exit code {done.returncode}"


def _run(command: Sequence[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            env={**os.environ, **variables},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {_PROBE_SECONDS} s")
    except OSError as error:
        raise CheckError(f"{command[0]} cannot be run: {error}", hint="set PYTHON to a working one") from error


def others_on_gpu() -> str:
    """Who uses the GPU, by nvidia-smi; nothing where it is idle, or where nobody can tell."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    return usage_in_words(
        _asked(tool, first, "--query-gpu=memory.used,utilization.gpu"),
        _asked(tool, first, "--query-compute-apps=pid,process_name,used_memory"),
    )


def usage_in_words(gpu: str, processes: str) -> str:
    """From nvidia-smi's answers without header and units, MiB and percent; nothing where they mean idle."""
    try:
        used, percent = (float(word) for word in gpu.splitlines()[0].split(","))
    except (ValueError, IndexError):
        return ""
    if used / 1024 < IDLE_GIB and percent < IDLE_PERCENT:
        return ""
    named = [", ".join(word.strip() for word in line.split(",")[:2]) for line in processes.splitlines() if line.strip()]
    who = f" by process {' and '.join(named[:3])}" if named else ""
    return f"the GPU is busy: {used / 1024:.1f} GiB held and {percent:.0f} % used{who}"


def _asked(tool: str, gpu: str, question: str) -> str:
    command = [tool, f"--id={gpu}", question, "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return ""


def commit_of(project: Path) -> str:
    """The state of the code; `unknown` in a copy without its history."""
    command = ["git", "-C", str(project), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (subprocess.SubprocessError, OSError):
        return "unknown"
