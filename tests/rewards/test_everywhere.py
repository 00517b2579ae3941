"""The same answers get the same scores from a thread, under torchrun, and in a Slurm job where there is one."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support import score_everywhere
from support.commands import PROJECT, environment
from support.score_everywhere import digest

SCRIPT = Path(score_everywhere.__file__)
# What slurmstepd does: a session of its own, no terminal, standard input at its end, the task below a shell.
SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}


@pytest.fixture(scope="module")
def expected() -> str:
    return digest()


def output(command: list[str], **more: str) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        cwd=PROJECT,
        env={**environment(), **more},
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_in_a_thread(expected: str) -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(digest(workers=2)))
    thread.start()
    thread.join()
    assert found == [expected]


@pytest.mark.slow
def test_under_torchrun(expected: str) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    lines = sorted(output([sys.executable, *launcher, str(SCRIPT)]).splitlines())
    assert lines == [f"rank {rank} digest {expected}" for rank in range(2)]


@pytest.mark.slow
def test_in_a_process_tree_like_slurms(expected: str) -> None:
    script = f"ulimit -c 0; umask 077; {sys.executable} {SCRIPT} & wait $!"
    assert output(["sh", "-c", script], **SLURM) == f"rank - digest {expected}\n"


@pytest.mark.slow
def test_in_a_slurm_job(expected: str) -> None:
    if shutil.which("srun") is None or subprocess.run(["sinfo"], capture_output=True, timeout=60).returncode:
        pytest.skip("no Slurm controller answers here")
    assert output(["srun", "--ntasks=1", sys.executable, str(SCRIPT)]) == f"rank - digest {expected}\n"
