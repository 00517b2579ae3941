"""What becomes of a job on a real Slurm when something goes wrong, and what is lost against the run that nothing interrupts.

    PYTHONPATH=tests python benchmarks/slurm_faults.py --out benchmarks/results/slurm_faults.json

The quickstart in little, on two ranks of two nodes, with the engine in the trainer's processes; the faults of servers are in
tests/cluster/test_slurm.py. A run that goes on must have every step once in metrics.jsonl, and end with the weights of the
whole run, bit for bit. Slurm (slurm-wlm and munge) must be installed, and this must run as root, for the mounts of one node.
The controller and the node daemons are made for this and gone afterwards.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from support.slurm import PROJECT, SMALL, Job, ThrowAwayCluster, reaches, steps_of, throw_away_cluster, waited_for

RECIPE = "examples/quickstart.yaml"
STEPS = 8
# Slurm looks at time limits twice a minute.
STEPS_OF_A_LONG_RUN = 120
WORDS = (RECIPE, *SMALL, f"train.steps={STEPS}")
PATIENCE_SECONDS = 300.0
Injected = Callable[[ThrowAwayCluster, Path], Job]


def begun(cluster: ThrowAwayCluster, folder: Path, *options: str) -> Job:
    """A job that has made two steps."""
    job = cluster.submit(*WORDS, f"run.folder={folder}", options=["--nodes=2", *options])
    reaches(folder, 2)
    return job


def starts_again(job: Job, starts: int) -> None:
    try:
        waited_for(lambda: job.starts > starts, PATIENCE_SECONDS, f"another start of job {job.number}")
    except AssertionError as error:
        raise AssertionError(f"{error}, which is {job.state}\n{job.said()[-3000:]}") from error


def requeue(cluster: ThrowAwayCluster, folder: Path) -> Job:
    job = begun(cluster, folder)
    cluster.run("scontrol", "requeue", job.number)
    return job


def preemption(cluster: ThrowAwayCluster, folder: Path) -> Job:
    job = begun(cluster, folder)
    cluster.preempt(job)
    return job


def time_limit(cluster: ThrowAwayCluster, folder: Path) -> Job:
    """Less is left of the limit, of a sudden, than the warning time; the next start has an hour again."""
    words = [*WORDS, f"train.steps={STEPS_OF_A_LONG_RUN}", f"run.folder={folder}"]
    job = cluster.submit(*words, options=["--nodes=2", "--time=60", "--signal=B:USR1@100"])
    reaches(folder, 2)
    hours, minutes, seconds = map(int, job.shown("RunTime").split(":"))
    # 40 to 100 s are left; a limit that a slow job has passed already would end it without a warning.
    limit = math.ceil((3600 * hours + 60 * minutes + seconds + 40) / 60)
    cluster.run("scontrol", "update", f"JobId={job.number}", f"TimeLimit={limit}")
    starts_again(job, 1)
    cluster.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    return job


def killed_rank(cluster: ThrowAwayCluster, folder: Path) -> Job:
    job = begun(cluster, folder)
    cluster.kill(job, "SLURM_PROCID=1", "megatron_fork", "train")
    return job


def lost_node(cluster: ThrowAwayCluster, folder: Path) -> Job:
    """Its daemon and its rank, at once; the node comes back once Slurm has noticed."""
    job = begun(cluster, folder)
    cluster.lose_node("n2")
    starts_again(job, 1)
    cluster.start_node("n2")
    return job


def killed_daemon(cluster: ThrowAwayCluster, folder: Path) -> Job:
    """The node's daemon alone, whose tasks live on; it is started again."""
    job = begun(cluster, folder)
    cluster.daemons["n2"].kill()
    cluster.daemons["n2"].wait()
    time.sleep(2)
    cluster.start_node("n2")
    return job


def scancel(cluster: ThrowAwayCluster, folder: Path) -> Job:
    job = begun(cluster, folder)
    cluster.run("scancel", job.number)
    return job


def unshared_folder(cluster: ThrowAwayCluster, folder: Path) -> Job:
    folder.mkdir()
    with cluster.without(folder, "n2"):
        job = cluster.submit(*WORDS, f"run.folder={folder}", options=["--nodes=2"])
        job.wait(PATIENCE_SECONDS)
    return job


def no_container(cluster: ThrowAwayCluster, folder: Path) -> Job:
    given = "--export=ALL,MEGATRON_FORK_CONTAINER=/no/image.sqsh"
    return cluster.submit(*WORDS, f"run.folder={folder}", options=["--nodes=2", given])


def wrong_nodes(cluster: ThrowAwayCluster, folder: Path) -> Job:
    return cluster.submit(*WORDS, f"run.folder={folder}", "cluster.nodes=1", options=["--nodes=2"])


def no_model(cluster: ThrowAwayCluster, folder: Path) -> Job:
    words = ["model.hf_config=null", "model.path=/no/model", "sft.steps=0"]
    return cluster.submit(*WORDS, *words, f"run.folder={folder}", options=["--nodes=2"])


def no_model_on_a_node(cluster: ThrowAwayCluster, folder: Path) -> Job:
    """A whole run's weights, which one node does not see."""
    model = whole_run(cluster, folder.parent, STEPS) / "model"
    words = ["model.hf_config=null", f"model.path={model}", "sft.steps=0"]
    with cluster.without(model, "n2"):
        job = cluster.submit(*WORDS, *words, f"run.folder={folder}", options=["--nodes=2"])
        job.wait(PATIENCE_SECONDS)
    return job


# A name, how it is done, and whether the run then goes on to its end.
FAULTS: tuple[tuple[str, Injected, bool], ...] = (
    ("scontrol requeue", requeue, True),
    ("preemption by a job of another partition", preemption, True),
    ("the time limit comes near", time_limit, True),
    ("kill -9 of a rank", killed_rank, True),
    ("a node is lost with all its processes", lost_node, True),
    ("kill -9 of a node's daemon, its tasks live on", killed_daemon, True),
    ("scancel", scancel, False),
    ("the run's folder is another one on a node", unshared_folder, False),
    ("a container that is not there", no_container, False),
    ("another number of nodes than the recipe's", wrong_nodes, False),
    ("a model that is not there", no_model, False),
    ("a model that is not there on one node", no_model_on_a_node, False),
)


def whole_run(cluster: ThrowAwayCluster, root: Path, steps: int) -> Path:
    """The folder of a run of so many steps that nothing interrupts."""
    folder = root / f"whole-{steps}"
    if not folder.exists():
        words = [*WORDS, f"train.steps={steps}", f"run.folder={folder}"]
        job = cluster.submit(*words, options=["--nodes=2"])
        assert job.wait(PATIENCE_SECONDS) == "COMPLETED", job.said()
    return folder


def resumed_after(cluster: ThrowAwayCluster, folder: Path) -> Job:
    """Submitted again, where the job has ended before its run."""
    job = cluster.submit(*WORDS, f"run.folder={folder}", options=["--nodes=2"])
    job.wait(PATIENCE_SECONDS)
    return job


def tried(cluster: ThrowAwayCluster, root: Path, name: str, inject: Injected, goes_on: bool) -> dict[str, Any]:
    folder = root / inject.__name__
    began = time.monotonic()
    job = inject(cluster, folder)
    state = job.wait(PATIENCE_SECONDS)
    row: dict[str, Any] = {
        "fault": name,
        "state": state,
        "exit code": job.exit_code,
        "starts": job.starts,
        "seconds": round(time.monotonic() - began),
        "steps made again": made_again(job.said()),
        "said": [shown(line, root) for line in job.said().splitlines() if is_telling(line)],
    }
    if not goes_on and steps_of(folder):
        row["submitted again"] = resumed_after(cluster, folder).state
    if steps_of(folder):
        steps = STEPS_OF_A_LONG_RUN if inject is time_limit else STEPS
        whole = whole_run(cluster, root, steps)
        expected, found = (each / "model" / "model.safetensors" for each in (whole, folder))
        row["every step once"] = steps_of(folder) == list(range(1, steps + 1))
        row["weights equal bit for bit"] = found.exists() and expected.read_bytes() == found.read_bytes()
    print(json.dumps(row), flush=True)
    waited_for(lambda: cluster.idle() == len(cluster.nodes), PATIENCE_SECONDS, "idle nodes")
    return row


def made_again(said: str) -> int:
    """By how many steps the status line went back."""
    steps = [
        int(part.split("/")[0]) for part in said.replace(":", " ").split("step ")[1:] if part.split("/")[0].isdigit()
    ]
    return sum(max(0, before - after) for before, after in pairwise(steps))


def is_telling(line: str) -> bool:
    return line.startswith("error:") or any(
        words in line
        for words in ("a rank ended", "ended with exit code", "goes back into the queue", "DUE TO", "CANCELLED")
    )


def shown(line: str, root: Path) -> str:
    return line.replace(str(root), "FOLDER").replace(str(PROJECT), "PROJECT")


def refused_submissions(cluster: ThrowAwayCluster) -> list[dict[str, Any]]:
    """What is refused before the queue."""
    rows = []
    for name, changed in (
        ("before the queue: a missing partition", ["cluster.slurm.partition=none"]),
        ("before the queue: a layout that these ranks do not have", ["parallel.tensor=3"]),
        ("before the queue: a container that is not there", ["cluster.slurm.container=/no/image.sqsh"]),
        ("before the queue: more nodes than there are", ["cluster.nodes=9"]),
    ):
        words = [sys.executable, "-m", "megatron_fork", "launch", *WORDS, *changed]
        done = subprocess.run(words, env=cluster.variables, cwd=PROJECT, capture_output=True, text=True, check=False)
        line = next((line for line in done.stderr.splitlines() if line.startswith("error:")), done.stderr[-300:])
        rows.append({"fault": name, "launch": line, "exit code": done.returncode})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="words of the faults to try again; the rows of others stay")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "slurm").mkdir()
        with throw_away_cluster(root / "slurm") as cluster:
            rows = [tried(cluster, root, *fault) for fault in FAULTS if asked.only in fault[0]]
            rows += [row for row in refused_submissions(cluster) if asked.only in row["fault"]]
    if asked.only and asked.out.exists():
        tried_again = [row["fault"] for row in rows]
        kept = json.loads(asked.out.read_text(encoding="utf-8"))["faults"]
        rows = [row for row in kept if row["fault"] not in tried_again] + rows
    result = {
        "command": "PYTHONPATH=tests python benchmarks/slurm_faults.py --out benchmarks/results/slurm_faults.json",
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "steps": STEPS,
        "faults": rows,
    }
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
