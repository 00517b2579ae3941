"""`megatron-fork plan` exits with 0 only if the recipe fits, and otherwise tells the largest part in one line."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import run

RECIPE = str(Path(__file__).parents[2] / "examples" / "qwen3-8b" / "top20.yaml")


@pytest.mark.parametrize(
    ("words", "fits", "told"),
    [
        ((), True, "how many GPUs:"),
        (("--json", "--gpus", "16"), True, '"fits": true'),
        (("--gpu-memory", "16"), False, "needs"),
        (("--gpus", "8", "--nodes", "2"), False, "are both given"),
        (("--gpus", "0"), False, "--gpus"),
        (("cluster.gpu=Voodoo",), False, "cluster.gpu=Voodoo is no GPU whose speed is known"),
        (("model.path=models/Mine",), False, "names no published model"),
    ],
)
def test_exit_code(words: tuple[str, ...], fits: bool, told: str) -> None:
    code, output = run("plan", RECIPE, *words)
    assert (code == 0) == fits, output
    assert told in output and "Traceback" not in output


def test_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "verl.sh"
    file.write_text("python3 -m verl.trainer.main_ppo data.train_batch_size=64")
    words = [sys.executable, "-m", "megatron_fork", "plan", "--from", "verl", str(file)]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1 and "the output cannot be written" in ended.stderr
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr
