"""One job on a real Slurm loses its nodes ten times: what it lost, against the same run that nothing interrupts.

    PYTHONPATH=tests python benchmarks/slurm_preemptions.py --out benchmarks/results/slurm_preemptions.json

The quickstart in little, on two ranks of two nodes, with the engine in the trainer's processes. Every second time another job
of a partition that goes first takes the nodes, and `scontrol requeue` the other times, each at a random moment after a further
step. The run must have every step once in metrics.jsonl, and end with the weights of the other run, bit for bit. Slurm
(slurm-wlm and munge) must be installed; the controller and the node daemons are made for this and gone afterwards.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from support.slurm import SMALL, Job, ThrowAwayCluster, steps_of, throw_away_cluster, waited_for

RECIPE = "examples/quickstart.yaml"
# Slurm takes some seconds to take nodes away, in which the run goes on.
STEPS_OF_A_START = 6
PATIENCE_SECONDS = 600.0


def preempted_run(cluster: ThrowAwayCluster, folder: Path, words: list[str], times: int, seed: int) -> dict[str, Any]:
    """A run whose nodes are taken away so many times, and when that was."""
    generator = random.Random(seed)
    job = cluster.submit(*words, f"run.folder={folder}", options=["--nodes=2"])
    stops = []
    for number in range(times):
        # The start before may have made a step while it was being stopped.
        waited_for(lambda number=number: f"restarts {number}," in job.said(), PATIENCE_SECONDS, f"start {number + 1}")
        known = len(steps_of(folder))
        waited_for(lambda known=known: len(steps_of(folder)) > known, PATIENCE_SECONDS, f"a step after {known}")
        time.sleep(generator.uniform(0.0, 1.0))
        made, began = len(steps_of(folder)), time.monotonic()
        way = take_nodes(cluster, job, number)
        stops.append({"way": way, "steps made": made, "seconds until queued again": round(time.monotonic() - began, 1)})
        print(f"{number + 1}: {way} after step {made}", flush=True)
    state = job.wait(PATIENCE_SECONDS)
    said = job.said()
    return {"state": state, "starts": job.starts, "saved and exit code 75": said.count("exit code 75"), "stops": stops}


def take_nodes(cluster: ThrowAwayCluster, job: Job, number: int) -> str:
    """Take the nodes away in one of two ways; returns once the job is queued again."""
    if number % 2:
        starts = job.starts
        cluster.run("scontrol", "requeue", job.number)
        waited_for(lambda: job.starts > starts, PATIENCE_SECONDS, "the job's way back into the queue")
        return "scontrol requeue"
    cluster.preempt(job)
    return "preemption"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    words = [RECIPE, *SMALL, f"train.steps={STEPS_OF_A_START * asked.times}"]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "slurm").mkdir()
        with throw_away_cluster(root / "slurm") as cluster:
            whole = cluster.submit(*words, f"run.folder={root / 'whole'}", options=["--nodes=2"])
            assert whole.wait(PATIENCE_SECONDS) == "COMPLETED", whole.said()
            found = preempted_run(cluster, root / "run", words, asked.times, asked.seed)
        weights = [(root / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "run")]
        found |= {
            "every step once": steps_of(root / "run")
            == steps_of(root / "whole")
            == list(range(1, STEPS_OF_A_START * asked.times + 1)),
            "weights equal bit for bit": weights[0] == weights[1],
        }
    result = {
        "command": "PYTHONPATH=tests python benchmarks/slurm_preemptions.py --out benchmarks/results/slurm_preemptions.json",
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "preemptions": asked.times,
        **found,
    }
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
