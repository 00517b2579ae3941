"""On a real Slurm: what a job goes through, it ends as one that nothing interrupts. `bash scripts/test_slurm.sh` runs this."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support.commands import QUICKSTART, metrics_of, run
from support.engine_servers import environment_of
from support.slurm import (
    PROJECT,
    SCRIPT,
    SMALL,
    Job,
    ThrowAwayCluster,
    missing_programs,
    reaches,
    steps_of,
    throw_away_cluster,
    waited_for,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("MEGATRON_FORK_SLURM") != "1", reason="scripts/test_slurm.sh starts a Slurm for this"
    ),
]
STEPS = 10
# In the place of vLLM: healthy, and nothing else.
HEALTHY_SERVER = """
import http.server, sys

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

given = dict(zip(sys.argv, sys.argv[1:]))
http.server.HTTPServer((given["--host"], int(given["--port"])), Answer).serve_forever()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowAwayCluster]:
    assert not missing_programs()
    with throw_away_cluster(tmp_path_factory.mktemp("slurm"), ("n1", "n2", "n3")) as started:
        yield started


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The quickstart from a folder with a warm start, in little."""
    folder = tmp_path_factory.mktemp("warm")
    code, output = run("sft", str(QUICKSTART), *SMALL, f"run.folder={folder}")
    assert code == 0, output
    start = ["sft.steps=0", "model.hf_config=null", f"model.path={folder / 'warm_start'}", f"train.steps={STEPS}"]
    return [str(QUICKSTART), *SMALL, *start]


def ends_whole(cluster: ThrowAwayCluster, job: Job) -> None:
    waited_for(lambda: not cluster.processes(job), 60, f"the end of all processes of job {job.number}")


def makes_another_step(folder: Path) -> None:
    reaches(folder, max(steps_of(folder), default=0) + 1)


def test_preempted_and_with_a_killed_rank_it_ends_as_the_uninterrupted_run(
    cluster: ThrowAwayCluster, words: list[str], tmp_path: Path
) -> None:
    """Two ranks on two nodes, to the last bit of the weights."""
    whole = cluster.submit(*words, f"run.folder={tmp_path / 'whole'}", options=["--nodes=2"])
    assert whole.wait() == "COMPLETED", whole.said()
    job = cluster.submit(*words, f"run.folder={tmp_path / 'run'}", options=["--nodes=2"])
    reaches(tmp_path / "run", 2)
    cluster.preempt(job)
    makes_another_step(tmp_path / "run")
    cluster.kill(job, "SLURM_PROCID=1", "megatron_fork", "train")
    assert job.wait() == "COMPLETED", job.said()
    assert job.starts == 3, job.said()
    assert steps_of(tmp_path / "run") == steps_of(tmp_path / "whole") == list(range(1, STEPS + 1))
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]
    logs = (tmp_path / "run" / "slurm").glob(f"{job.number}-start-*/rank-*.log")
    assert len(list(logs)) == 3 * 2
    assert "restarts 2" in job.said()
    ends_whole(cluster, job)


def test_with_a_server_that_is_killed_and_a_requeue_no_step_is_lost(
    cluster: ThrowAwayCluster, words: list[str], tmp_path: Path
) -> None:
    """Two ranks and a vLLM server on three nodes. The server is started again in the job, with the current weights."""
    if not (environment_of("vllm") / "bin" / "python").exists():
        pytest.skip("no environment of vllm: make it with scripts/engine_environment.sh vllm")
    served = ["rollout.engine=vllm", "rollout.sync=gloo", "cluster.engine_nodes=1", f"run.folder={tmp_path}"]
    job = cluster.submit(*words, *served, options=["--nodes=3"])
    reaches(tmp_path, 2)
    cluster.kill(job, "vllm.entrypoints.openai.api_server")
    makes_another_step(tmp_path)
    cluster.run("scontrol", "requeue", job.number)
    assert job.wait() == "COMPLETED", job.said()
    assert job.starts == 2, job.said()
    ends_whole(cluster, job)
    assert steps_of(tmp_path) == list(range(1, STEPS + 1))
    assert all(step["mismatch/max"] < 1e-4 for step in metrics_of(tmp_path, "train"))
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == STEPS
    assert (
        tmp_path / "slurm" / f"{job.number}-start-1" / "server-0.log"
    ).is_file() and "servers 1/1 (started again: 1)" in job.said()


@pytest.mark.parametrize(
    ("change", "options", "line"),
    [
        (
            ["cluster.engine_nodes=1", "rollout.engine=vllm", "cluster.nodes=2"],
            ["--nodes=3", "--export=ALL,MEGATRON_FORK_ENGINES=/no/folder"],
            "before it was healthy",
        ),
        (
            ["cluster.engine_nodes=1", "rollout.engine=vllm", "model.path=/no/model"],
            ["--nodes=3"],
            "model.path=/no/model is not a folder",
        ),
        (["parallel.tensor=3"], ["--nodes=2"], "world size 2 is not a multiple"),
        (
            [],
            ["--nodes=2", "--export=ALL,MEGATRON_FORK_CONTAINER=/no/image.sqsh"],
            "container /no/image.sqsh is not there",
        ),
        ([], ["--nodes=3"], "submit it with --nodes=2"),
    ],
)
def test_what_cannot_start_ends_the_job_with_one_line(
    cluster: ThrowAwayCluster, words: list[str], tmp_path: Path, change: list[str], options: list[str], line: str
) -> None:
    job = cluster.submit(*words, *change, f"run.folder={tmp_path}", options=options)
    assert job.wait() == "FAILED"
    assert job.exit_code not in (0, 75), "75 says that all is saved and that it may be started again"
    assert line in job.said()
    assert job.starts == 1
    ends_whole(cluster, job)


def test_launch_submits_what_the_nodes_can_hold_and_refuses_the_rest(
    cluster: ThrowAwayCluster, words: list[str], tmp_path: Path
) -> None:
    launch = [
        sys.executable,
        "-m",
        "megatron_fork",
        "launch",
        *words,
        "train.steps=1",
        f"run.folder={tmp_path / 'run'}",
    ]
    output = tmp_path / "output"
    said = cluster.run(*launch, f"cluster.slurm.options=[--output={output}]", "--nodes=2")
    job = Job(cluster, said.split()[-1], output)
    assert job.wait() == "COMPLETED", job.said()
    assert steps_of(tmp_path / "run") == [1]
    for change, line in (
        ("cluster.slurm.partition=none", "cluster.slurm.partition=none is not a partition here"),
        ("cluster.nodes=4", "make 4 nodes, but cluster.slurm.partition=main has 3"),
    ):
        with pytest.raises(AssertionError, match=line):
            cluster.run(*launch, change)


def test_nothing_of_a_job_outlives_it_not_even_where_it_is_killed(
    cluster: ThrowAwayCluster, words: list[str], tmp_path: Path
) -> None:
    """A server that is healthy and does nothing, for which the ranks wait; the job's shell is killed, and cannot tidy up."""
    module = tmp_path / "modules" / "vllm" / "entrypoints" / "openai" / "api_server.py"
    module.parent.mkdir(parents=True)
    module.write_text(HEALTHY_SERVER)
    python = tmp_path / ".venv-vllm" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}/modules:$PYTHONPATH" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    served = ["rollout.engine=vllm", "rollout.sync=gloo", "cluster.engine_nodes=1", f"run.folder={tmp_path / 'run'}"]
    options = ["--nodes=3", f"--export=ALL,MEGATRON_FORK_ENGINES={tmp_path}"]
    job = cluster.submit(*words, *served, options=options)
    waited_for(lambda: "servers 1/1" in job.said(), 120, "a healthy server")
    cluster.kill_script(job)
    job.wait()
    ends_whole(cluster, job)


def test_an_array_an_evaluation_and_a_conversion_are_jobs_too(
    cluster: ThrowAwayCluster, words: list[str], tmp_path: Path
) -> None:
    """Each is submitted as docs/cluster.md has it, on one node."""
    scripts = SCRIPT.parent
    model = next(word.partition("=")[2] for word in words if word.startswith("model.path="))
    recipe, one = words[0], [*SMALL, "cluster.nodes=1"]
    array = cluster.submit(
        f"{recipe} {recipe}", "3 4", *one, "sft.steps=3", "train.steps=1", f"run.name={tmp_path.name}",
        options=["--array=1-2"], script=scripts / "sweep.sbatch",
    )  # fmt: skip
    evaluation = cluster.submit(
        recipe, *one, "sft.steps=0", f"--out={tmp_path / 'evaluation'}", script=scripts / "evaluate.sbatch"
    )
    conversion = cluster.submit("to-megatron", model, str(tmp_path / "converted"), script=scripts / "convert.sbatch")
    for job in (array, evaluation, conversion):
        assert job.wait() == "COMPLETED", job.said()
    assert "held_out" in (tmp_path / "evaluation" / "evaluation.json").read_text()
    assert list((tmp_path / "converted").iterdir())
    folders = sorted((PROJECT / "runs").glob(f"{tmp_path.name}-*"))
    try:
        seeds = {yaml.safe_load((folder / "resolved.yaml").read_text())["seed"] for folder in folders}
        assert seeds == {3, 4} and len(folders) == 2
    finally:
        for folder in folders:
            shutil.rmtree(folder)
