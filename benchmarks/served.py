"""Runs of the quickstart recipe through real servers, which several benchmarks make: the program as a user starts it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT / "tests"))

from support.engine_servers import FaultyProxy, RunningServer, environment_of  # noqa: E402

__all__ = [
    "PROJECT",
    "FaultyProxy",
    "RunningServer",
    "environment_of",
    "serving",
    "start",
    "steps_of",
    "summary_of",
    "train",
    "warm_start",
    "write",
]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """`megatron-fork train examples/quickstart.yaml WORDS` on one thread, as its servers have one."""
    command = [sys.executable, "-m", "megatron_fork", "train", str(PROJECT / "examples" / "quickstart.yaml")]
    return subprocess.Popen(
        [*command, f"run.folder={folder}", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=PROJECT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def train(folder: Path, *words: str) -> dict[str, Any]:
    """A whole run; its summary."""
    process = start(folder, *words)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}:\n{output[-4000:]}")
    return summary_of(folder)


def warm_start(folder: Path, *words: str) -> list[str]:
    """Supervised fine-tuning alone; what a run says to set out from it."""
    train(folder, "train.steps=0", "evaluation.samples=1", *words)
    return ["sft.steps=0", "model.hf_config=null", f"model.path={folder / 'warm_start'}"]


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def steps_of(folder: Path) -> list[dict[str, float]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [record for record in map(json.loads, lines) if record["stage"] == "train"]


@contextmanager
def serving(engine: str, model: Path, folder: Path, *, count: int = 1) -> Iterator[list[RunningServer]]:
    """Servers of an engine, each with a log in `folder`."""
    servers = [RunningServer(engine, model, folder / f"{engine}-{place}.log") for place in range(count)]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            server.stop()


def write(out: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    """The result, with how and where it was made."""
    if out is None:
        return
    record = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.python_version()}",
        "rows": list(rows),
    }
    out.write_text(json.dumps(record, indent=1) + "\n")
