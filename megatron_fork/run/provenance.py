"""Where a run came from: versions, commit, command line, machine, layout. For readers only; nothing is compared with it."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import socket
import subprocess
import sys
import textwrap
from datetime import datetime
from pathlib import Path

import torch

from megatron_fork import __version__
from megatron_fork.errors import masked
from megatron_fork.recipe import write_yaml

_PACKAGES = ("torch", "megatron-core", "transformers", "transformer-engine", "vllm")
_PROJECT = Path(__file__).parents[2]
_GIT_SECONDS = 5.0


def provenance(layout: str) -> dict[str, object]:
    """What a reader of the results needs besides the recipe; passwords in addresses are masked."""
    versions = {"megatron-fork": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "written": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(masked(each) for each in sys.argv),
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}",
        "layout": layout,
        "commit": commit(),
        "versions": versions,
    }


def as_comments(found: dict[str, object]) -> str:
    """The provenance as YAML comments, to be put above a recipe."""
    return textwrap.indent(write_yaml({"provenance": found}), "# ", lambda line: True)


def commit(project: Path = _PROJECT) -> str | None:
    """The git commit of this project's source, marked if files differ from it; None outside a working copy."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(project), *words],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
        ).stdout.strip()

    try:
        # An enclosing repository, for example around a virtual environment, would give another project's commit.
        git("ls-files", "--error-unmatch", "megatron_fork/__init__.py")
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
