"""How soon a run ends when one of its ranks is killed, stopped, or fails alone, and what it says.

    python benchmarks/rank_loss.py --out benchmarks/results/rank_loss.json

The quickstart, made small, trains on gloo ranks of this machine. Once it has made its second step, a rank is killed (SIGKILL),
stopped (SIGSTOP), or raises an error in its loss; the time is counted until no process of the run is left. Ranks are started
by torchrun, and alone: by variables, as srun does, where nobody ends the others.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT / "tests"))

from support.commands import QUICKSTART, TINY, metrics_of  # noqa: E402
from support.watched_ranks import ProgramRanks  # noqa: E402

LIMIT = 150.0
# PPO's loss, until a file is there: then one rank's raises.
FAILING = """
import os
from pathlib import Path
from megatron_fork.objective import clipped

def failing(tokens):
    if os.environ["RANK"] == os.environ["FAILS"] and Path(os.environ["NOW"]).exists():
        raise ValueError("of this rank alone")
    return clipped(tokens.ratio, tokens.advantage, 0.2, 0.28, 10.0)
"""
# Starter, fate, rank.
CASES = [
    (starter, fate, rank) for starter in ("alone", "torchrun") for fate in ("kill", "stop", "raise") for rank in (1, 0)
]


def process_of_rank(rank: int, folder: Path) -> int:
    """The process of a rank of the run in `folder`, by its variables."""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ours = f"run.folder={folder}".encode() in words and b"torch.distributed.run" not in words
        if ours and f"RANK={rank}".encode() in variables:
            return int(process.name)
    raise ProcessLookupError(f"no process of rank {rank}")


def measured(starter: str, fate: str, rank: int, ranks: int) -> dict[str, Any]:
    """Seconds from the fault until all processes have ended, their exit codes, and the line that names the rank."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        folder, now = place / "run", place / "now"
        (place / "failing_loss.py").write_text(FAILING)
        os.environ.update(FAILS=str(rank), NOW=str(now))
        words = ["train", str(QUICKSTART), *TINY, "train.steps=2000", "run.checkpoint_every=1", f"run.folder={folder}"]
        if fate == "raise":
            words.append("objective.loss=failing_loss:failing")
        if starter == "alone":
            started = ProgramRanks(place, ranks, *words, python_path=str(place))
            processes, outputs = started.processes, started.outputs
        else:
            outputs = [place / "output.txt"]
            with outputs[0].open("w") as file:
                launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
                processes = [
                    subprocess.Popen(
                        [sys.executable, *launcher, "-m", "megatron_fork", *words],
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{PROJECT}:{place}"},
                        start_new_session=True,
                    )
                ]
        while not ((folder / "metrics.jsonl").is_file() and len(metrics_of(folder, "train")) >= 2):
            if any(process.poll() is not None for process in processes):
                raise RuntimeError("\n".join(output.read_text() for output in outputs))
            time.sleep(0.05)
        if fate == "raise":
            now.touch()
        else:
            os.kill(process_of_rank(rank, folder), signal.SIGKILL if fate == "kill" else signal.SIGSTOP)
        began = time.monotonic()
        while any(process.poll() is None for process in processes) and time.monotonic() - began < LIMIT:
            time.sleep(0.05)
        seconds = time.monotonic() - began
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said = "\n".join(output.read_text() for output in outputs)
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        return {
            "started": starter,
            "fault": fate,
            "rank": rank,
            "ranks": ranks,
            "seconds": round(seconds, 1),
            "exit_codes": [process.returncode for process in processes],
            "says": [line.replace(platform.node(), "HOST").replace(str(place), "PLACE") for line in lines],
            "checkpoint": (folder / "checkpoints" / "LATEST").is_file(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    results = []
    for case in CASES:
        results.append(measured(*case, chosen.ranks))
        print(json.dumps(results[-1]), flush=True)
        record = {
            "command": " ".join(["python", *sys.argv]),
            "date": f"{datetime.date.today()}",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "results": results,
        }
        chosen.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
