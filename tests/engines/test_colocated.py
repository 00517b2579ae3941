"""vLLM inside the trainer's process: its checks run in the environment that has both; without it, one line says so."""

import importlib.util
import subprocess
from pathlib import Path

import pytest
from support.commands import PROJECT, QUICKSTART, TINY, environment, run
from support.engine_servers import environment_of

CHECKS = Path(__file__).parent / "colocated_checks.py"


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["not quickstart", "quickstart"])
def test_in_its_environment(subject: str) -> None:
    python = environment_of("vllm-colocated") / "bin" / "python"
    if not python.exists():
        pytest.skip("no environment of vllm-colocated: make it with scripts/engine_environment.sh vllm-colocated")
    command = [python, "-m", "pytest", CHECKS, "-p", "no:cacheprovider", "-rs", "-k", subject]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env=environment(),
        timeout=1500.0,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="this environment has vLLM")
def test_without_vllm_one_line_names_the_script(tmp_path: Path) -> None:
    words = ["train", str(QUICKSTART), *TINY, "rollout.engine=vllm_colocated", f"run.folder={tmp_path / 'run'}"]
    code, output = run(*words)
    assert code == 2 and "Traceback" not in output, output
    assert "rollout.engine=vllm_colocated: vLLM cannot be imported here" in output
    assert "scripts/engine_environment.sh vllm-colocated" in output and not (tmp_path / "run").exists()
