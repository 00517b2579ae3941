"""`launch` refuses before the queue what can be known there, and prints the script that it would submit."""

import importlib.util
from pathlib import Path

import pytest
from support.commands import QUICKSTART, run

from megatron_fork.cli.launch import submit
from megatron_fork.cluster import ClusterConfig, SlurmConfig
from megatron_fork.errors import ConfigError

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
        (["cluster.slurm.time_limit=1:00"], "time_limit=1:00 leaves no time before the warning, warning_seconds=300"),
        (["cluster.slurm.time_limit=0-0:5"], "leaves no time before the warning"),
        (["cluster.slurm.setup=[if true; then]"], "cluster.slurm.setup cannot be read by bash"),
        (["cluster.slurm.setup=['echo \"']"], "cluster.slurm.setup cannot be read by bash"),
        (["cluster.slurm.setup=['cat <<END']"], "cluster.slurm.setup cannot be read by bash"),
        (["cluster.gpu_memory=81920"], "cluster.gpu_memory=81920 is more than a GPU of cluster.gpu=H100 has: 96 GiB"),
        (["cluster.gpu_memory=80GB"], "give a number above 0, in GiB"),
        (["cluster.gpu=H100\nx"], "is no GPU's name"),
        (["cluster.slurm.partition=a b"], "cluster.slurm.partition=a b is not in the form that it must have"),
    ],
)
def test_what_would_fail_in_the_job_is_one_line_before_it(words: list[str], line: str) -> None:
    code, output = run("launch", str(QUICKSTART), *words, "--dry-run")
    assert code in (1, 2)
    assert line in output and "Traceback" not in output and "#SBATCH" not in output


@pytest.mark.parametrize(
    ("cluster", "line"),
    [
        (ClusterConfig(nodes=3), None),
        (ClusterConfig(nodes=4, engine_nodes=1, slurm=SlurmConfig(partition="main,big")), None),
        (ClusterConfig(nodes=3, engine_nodes=1), "make 4 nodes, but cluster.slurm.partition=main has 3"),
        (
            ClusterConfig(slurm=SlurmConfig(partition="big,none")),
            "cluster.slurm.partition=none is not a partition here",
        ),
    ],
)
def test_a_job_that_its_partition_can_never_hold_is_not_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: ClusterConfig, line: str | None
) -> None:
    """Slurm would keep it in the queue. Stand-ins for its commands, which few machines have; tests/cluster has the real."""
    for name, text in (("sinfo", "main* 1\\nmain* 2\\nbig 5\\n"), ("sbatch", "Submitted batch job 7\\n")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\nprintf '{text}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if line is None:
        assert submit("#!/bin/bash\n", cluster) == "Submitted batch job 7"
    else:
        with pytest.raises(ConfigError, match=line):
            submit("#!/bin/bash\n", cluster)


def test_a_dry_run_needs_no_weights_and_a_job_does() -> None:
    """On a machine without the model its published shape is planned, and what was not looked at is said."""
    recipe = str(QUICKSTART.parent / "qwen3-8b" / "top20.yaml")
    code, output = run("launch", recipe, "--dry-run")
    assert code == 0 and "#SBATCH --nodes=4" in output
    assert "note: model.path=models/Qwen3-8B-Base is not on this machine" in output
    code, output = run("launch", recipe)
    assert code == 1 and "model.path=models/Qwen3-8B-Base is not a folder" in output
    code, output = run("launch", recipe, "--dry-run", "cluster.gpu_memory=16")
    assert code == 2 and "needs" in output and "of 15.2 GiB" in output and "#SBATCH" not in output


@pytest.mark.parametrize("command", [("launch", "--dry-run"), ("plan",)])
def test_ranks_that_a_layout_does_not_have_are_told_by_the_field_of_the_job(command: tuple[str, ...]) -> None:
    name, *options = command
    code, output = run(name, "examples/qwen3-32b/top20.yaml", *options, "cluster.nodes=3")
    assert code == 2 and "cluster.nodes" in output


@pytest.mark.parametrize(
    ("words", "line", "hint"),
    [
        (["cluster.nodes=3"], "cluster.nodes=3 x cluster.gpus_per_node=8: world size 24", "multiple of 2 nodes"),
        (
            ["cluster.nodes=3", "cluster.gpus_per_node=0"],
            "cluster.gpus_per_node=0: world size 3",
            "multiple of 16 nodes",
        ),
        (["parallel.pipeline=3"], "cluster.nodes=8 x cluster.gpus_per_node=8: world size 64", "multiple of 6 nodes"),
    ],
)
def test_a_layout_that_the_job_does_not_have_names_the_nodes_that_would_do(
    words: list[str], line: str, hint: str
) -> None:
    code, output = run("launch", "examples/qwen3-32b/top20.yaml", "--dry-run", *words)
    assert code == 2 and line in output and hint in output and "cluster.gpus_per_node" in output.partition("\n  ")[2]


def test_a_package_of_the_nodes_alone_is_a_note_where_they_have_an_environment_of_their_own() -> None:
    recipe, lacks = str(QUICKSTART.parent / "qwen3-0.6b" / "top20.yaml"), importlib.util.find_spec("vllm") is None
    said = "rollout.engine=vllm_colocated: vLLM cannot be imported here"
    for words in ((), ("cluster.slurm.setup=[module load vllm]",)):
        code, output = run("launch", recipe, "--dry-run", *words)
        assert code == 0 and (f"note: {said}" in output) == lacks, output
    code, output = run("launch", recipe)
    assert code != 0 and (f"error: {said}" in output) == lacks
