"""From nothing to a job that could be submitted: seconds to clone, make the environment and print the job of a 32B recipe.

    python benchmarks/first_job.py --out benchmarks/results/first_job.json

Clones this checkout into a new folder, makes its environment without pip's cache, and runs `launch --dry-run` in it. What the
package index and the disk give belongs to the figure.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
RECIPE = "examples/qwen3-32b/top20.yaml"


def seconds_of(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    began = time.monotonic()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return round(time.monotonic() - began, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    # Nothing of the environment that this runs in.
    outside = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    outside["PATH"] = os.pathsep.join(
        each for each in outside["PATH"].split(os.pathsep) if not (Path(each).parent / "pyvenv.cfg").is_file()
    )
    with tempfile.TemporaryDirectory() as work:
        clone = Path(work) / "clone"
        environment = {**outside, "PIP_NO_CACHE_DIR": "1", "MEGATRON_FORK_VENV": str(clone / ".venv")}
        load = os.getloadavg()[0]
        parts = {
            "clone": seconds_of(["git", "clone", "-q", str(PROJECT), str(clone)], Path(work), environment),
            "environment": seconds_of(["bash", "scripts/environment.sh"], clone, environment),
            "dry_run": seconds_of([".venv/bin/megatron-fork", "launch", RECIPE, "--dry-run"], clone, environment),
        }
    result = {
        "command": "python benchmarks/first_job.py",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "load": [load, os.getloadavg()[0]]},
        "seconds": {**parts, "all": round(sum(parts.values()), 1)},
    }
    print(json.dumps(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
