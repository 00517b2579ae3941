"""The whole quickstart on an idle machine and beside a process that never waits: seconds by phase, and what was learned.

    python benchmarks/quickstart_busy.py --out benchmarks/results/quickstart_busy.json

Without OMP_NUM_THREADS, through the command line, as `scripts/quickstart.sh` does once its environment is there. Two runs of
about two minutes each; nothing else should run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PROJECT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "megatron_fork", "train", str(PROJECT / "examples" / "quickstart.yaml")]


@contextmanager
def a_process_that_never_waits() -> Iterator[None]:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def quickstart(folder: Path) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    load = os.getloadavg()[0]
    subprocess.run(
        [*COMMAND, f"run.folder={folder}"],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**environment, "PYTHONPATH": str(PROJECT)},
    )
    summary = json.loads((folder / "summary.json").read_text())
    shown = ("wall_seconds", "seconds", "pass_rate_before", "pass_rate_after", "greedy_after", "tokens_per_second")
    return {"load_before": load, **{name: summary[name] for name in shown}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        idle = quickstart(Path(scratch, "idle"))
        print(json.dumps(idle), flush=True)
        with a_process_that_never_waits():
            busy = quickstart(Path(scratch, "busy"))
        print(json.dumps(busy), flush=True)
    result = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "idle": idle,
        "beside a process that never waits": busy,
        "ratio": busy["wall_seconds"] / idle["wall_seconds"],
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
