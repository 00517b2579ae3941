"""`launch` refuses before the queue what can be known there, and prints the script that it would submit."""

import pytest
from support.commands import QUICKSTART, run

ONE_NODE = "cluster.gpus_per_node=0"


def test_a_dry_run_prints_the_script_for_its_nodes() -> None:
    code, output = run("launch", str(QUICKSTART), ONE_NODE, "--nodes", "2", "--dry-run")
    assert code == 0, output
    assert "#SBATCH --nodes=2\n" in output and "cluster.nodes=2" in output


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["parallel.tensor=3"], "world size 8 is not a multiple"),
        (["cluster.engine_nodes=1"], "which has no servers"),
        (["rollout.engine=vllm"], "cluster.engine_nodes=0 and no rollout.servers"),
        (["rollout.engine=vllm", "cluster.engine_nodes=1"], "without model.path"),
        (["cluster.slurm.container=/no/image.sqsh"], "cluster.slurm.container=/no/image.sqsh is not there"),
        (["cluster.engine_nodes=2", "rollout.engine=vllm", "--nodes", "2"], "leaves none of 2 nodes to the trainer"),
        (["cluster.slurm.time_limit=1h"], "is not a time of Slurm's"),
    ],
)
def test_what_would_fail_in_the_job_is_one_line_before_it(words: list[str], line: str) -> None:
    code, output = run("launch", str(QUICKSTART), *words, "--dry-run")
    assert code in (1, 2)
    assert line in output and "Traceback" not in output and "#SBATCH" not in output
