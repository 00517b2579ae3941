"""The quickstart on two ranks, on every layout the README names: same first step as on one rank, and it ends in order.

One layout is started by torchrun, the others' ranks have its variables.

Rollouts come from seeds of their own, so that from one warm start all layouts sample the same responses.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import PROJECT, QUICKSTART, TINY, environment, metrics_of, run

LAYOUTS = {
    "tensor": ["parallel.tensor=2"],
    "pipeline": ["parallel.pipeline=2"],
    "data": [],
    "context": ["parallel.context=2"],
    "tensor with sequence": ["parallel.tensor=2", "parallel.sequence=true"],
}
COMPARED = (
    "loss",
    "gradient_norm",
    "selection/threshold",
    "selection/selected",
    "rollout/response_tokens",
    "entropy/mean",
)
STEPS = [word for word in TINY if not word.startswith(("sft.", "train.steps"))] + ["train.steps=1"]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    code, output = run("train", str(QUICKSTART), *STEPS, "sft.steps=40", f"run.folder={folder}")
    assert code == 0, output
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_same_first_step(name: str, one_rank: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [*STEPS, "sft.steps=0", "model.hf_config=null", f"model.path={one_rank / 'warm_start'}"]
    code, output = run(
        "train", str(QUICKSTART), *words, *LAYOUTS[name], f"run.folder={folder}", ranks=2, torchrun=name == "tensor"
    )
    assert code == 0, output
    ours, theirs = (metrics_of(each, "train")[0] for each in (folder, one_rank))
    assert {key: ours[key] for key in COMPARED} == pytest.approx({key: theirs[key] for key in COMPARED}, rel=1e-5)
    assert (folder / "report.html").is_file() and (folder / "summary.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["srun", "batch step"])
def test_tasks_of_slurm_are_ranks_of_one_run(command: str, one_rank: Path, tmp_path: Path) -> None:
    """Not as many runs of one rank: `srun` gives each process its number, and the shell of a job has none of them."""
    words = [*STEPS, "sft.steps=0", "model.hf_config=null", f"model.path={one_rank / 'warm_start'}"]
    program = [
        sys.executable,
        "-m",
        "megatron_fork",
        "train",
        str(QUICKSTART),
        *words,
        f"run.folder={tmp_path / 'run'}",
    ]
    options = {"capture_output": True, "text": True, "cwd": PROJECT, "timeout": 240}
    if command == "batch step":
        job = {**environment(), "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "1"}
        done = subprocess.run(program, env=job, **options)
        assert done.returncode == 2 and "SLURM_NTASKS=2" in done.stderr and "srun" in done.stderr
        return
    if shutil.which("srun") is None or subprocess.run(["sinfo"], capture_output=True, timeout=60).returncode:
        pytest.skip("no Slurm controller answers here")
    launcher = ["srun", "--nodes=1", "--ntasks=2", "--overcommit"]
    done = subprocess.run([*launcher, *program], env={**os.environ, **environment()}, **options)
    assert done.returncode == 0, done.stderr
    assert "(data 2)" in done.stdout
    (ours,), (theirs, *_) = metrics_of(tmp_path / "run", "train"), metrics_of(one_rank, "train")
    assert {key: ours[key] for key in COMPARED} == pytest.approx({key: theirs[key] for key in COMPARED}, rel=1e-5)


@pytest.mark.slow
def test_a_mistyped_field_is_one_error_and_the_end_of_torchruns_report() -> None:
    code, output = run("train", str(QUICKSTART), "sead=1", ranks=2, torchrun=True)
    lines = [line.strip() for line in output.splitlines()]
    assert code == 1, "whatever the ranks leave with, torchrun leaves with 1"
    assert lines.count("error: sead is not a field") == 1 and lines[0] == "error: sead is not a field"
    told = lines.index("traceback : error: sead is not a field")
    assert lines[told + 1] == "did you mean seed?" and len(lines) - told <= 4, "who looks at the log's end sees it"
