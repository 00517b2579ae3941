"""On a real Slurm: what a job goes through, it ends as one that nothing interrupts. `bash scripts/test_slurm.sh` runs this."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import QUICKSTART, metrics_of, run
from support.engine_servers import environment_of
from support.slurm import SMALL, ThrowAwayCluster, missing_programs, reaches, steps_of, throw_away_cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("MEGATRON_FORK_SLURM") != "1", reason="scripts/test_slurm.sh starts a Slurm for this"
    ),
]
STEPS = 10


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
        (["parallel.tensor=3"], ["--nodes=2"], "world size 2 is not a multiple"),
        ([], ["--nodes=3"], "submit it with --nodes=2"),
    ],
)
def test_what_cannot_start_ends_the_job_with_one_line(
    cluster: ThrowAwayCluster, words: list[str], tmp_path: Path, change: list[str], options: list[str], line: str
) -> None:
    job = cluster.submit(*words, *change, f"run.folder={tmp_path}", options=options)
    assert job.wait() == "FAILED" and job.exit_code != 0
    assert line in job.said()
    assert job.starts == 1
