"""Whatever a recipe sets, the job's script is valid bash that hands its words on unchanged, and is the one in scripts/slurm."""

import string
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.cli.launch import variables
from megatron_fork.cluster import ClusterConfig, SlurmConfig, job_script, job_variables
from megatron_fork.config import load_config
from megatron_fork.errors import ConfigError

PROJECT = Path(__file__).parents[2]
MARK = "# --- the recipe's words follow\n"
TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f"), max_size=20)
SLURM = st.builds(
    SlurmConfig,
    partition=st.none() | st.sampled_from(["gpu", "a,b"]),
    time_limit=st.none() | st.sampled_from(["90", "24:00:00", "2-12", "1-00:30:00"]),
    warning_seconds=st.integers(1, 3600),
    requeue=st.booleans(),
    container=st.none() | TEXT.filter(lambda text: text.strip() and text.isprintable()),
    container_kind=st.sampled_from(["pyxis", "apptainer"]),
    mounts=st.lists(st.sampled_from(["/data:/data", "/a:/b:ro"]), max_size=2),
    options=st.lists(st.just("--constraint=h100"), max_size=1),
)
CLUSTER = st.builds(
    ClusterConfig, nodes=st.integers(1, 64), engine_nodes=st.integers(0, 64), gpus_per_node=st.just(8), slurm=SLURM
)


@settings(max_examples=25, deadline=None)
@given(cluster=CLUSTER, name=TEXT, words=st.lists(TEXT, min_size=1, max_size=4))
def test_the_script_is_bash_and_keeps_every_word(cluster: ClusterConfig, name: str, words: list[str]) -> None:
    text = job_script(cluster, name=name, words=words)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    head, _, body = text.partition(MARK)
    script = head + 'printf "%s\\0" "$@" "${MEGATRON_FORK_CONTAINER:-}"'
    told = subprocess.run(["bash"], input=script, text=True, capture_output=True, check=True).stdout.split("\0")
    assert told[:-1] == [*words, cluster.slurm.container or ""]
    assert f"#SBATCH --nodes={cluster.nodes + cluster.engine_nodes}\n" in head
    assert body == (PROJECT / "scripts" / "slurm" / "train.sbatch").read_text().partition(MARK)[2]


@given(value=TEXT)
@settings(max_examples=25, deadline=None)
def test_a_shell_reads_variables_back(value: str) -> None:
    script = job_variables({"found": value}) + 'printf "%s" "$found"'
    assert subprocess.run(["bash"], input=script, text=True, capture_output=True, check=True).stdout == value


@pytest.mark.parametrize("name", ["train", "evaluate", "convert", "sweep"])
def test_scripts_are_bash(name: str) -> None:
    subprocess.run(["bash", "-n", PROJECT / "scripts" / "slurm" / f"{name}.sbatch"], check=True)


@pytest.mark.parametrize(
    "given",
    [
        {"time_limit": "1h"},
        {"time_limit": "24:00:00\n#SBATCH --nodes=9"},
        {"partition": "a b"},
        {"mounts": ["data"]},
        {"options": ["--nodes=3"]},
        {"options": ["-p gpu"]},
        {"options": ["--gpus-per-node=4"]},
        {"options": ["--wrap=id"]},
        {"options": ["--array=0-3"]},
        {"options": ['--comment="a']},
        {"options": ["--comment=a\\"]},
        {"time_limit": "9" * 20},
        {"container": "a\nb"},
        {"warning_seconds": 0},
    ],
)
def test_what_sbatch_cannot_take_is_refused_by_its_field(given: dict) -> None:
    with pytest.raises(ConfigError, match=rf"cluster\.slurm\.{next(iter(given))}"):
        SlurmConfig(**given)


@settings(max_examples=50, deadline=None)
@given(name=st.text(max_size=400))
def test_a_run_s_name_is_one_word_of_sbatch_and_one_part_of_a_path(name: str) -> None:
    """Whatever it is: not another folder than `runs`, no second option, and no name that a disk refuses."""
    (line,) = [each for each in SlurmConfig().options_of(1, 8, name) if each.startswith("--job-name=")]
    word = line.removeprefix("--job-name=")
    assert 0 < len(word) <= 100 and word.isascii() and not set(word) - set(string.ascii_letters + string.digits + "_.-")
    config = replace(load_config(PROJECT / "examples" / "quickstart.yaml"), cluster=ClusterConfig())
    text = variables(replace(config, run=replace(config.run, name=name)), "7")
    told = subprocess.run(
        ["bash"], input=text + 'printf %s "$folder"', text=True, capture_output=True, check=True
    ).stdout
    assert Path(told).parent == Path("runs").absolute() and len(Path(told).name.encode()) < 200 and told.endswith("-7")
