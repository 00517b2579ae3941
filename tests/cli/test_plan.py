"""`megatron-fork plan` exits with 0 only if the recipe fits, and otherwise tells the largest part in one line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_fork.cli import commands as cli

RECIPE = str(Path(__file__).parents[2] / "examples" / "qwen3-8b" / "top20.yaml")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 0, "how many GPUs:"),
        (("--json", "--gpus", "16"), 0, '"fits": true'),
        (("--gpu-memory", "16"), 1, "needs"),
        (("--gpus", "8", "--nodes", "2"), 1, "are both given"),
        (("--gpus", "0"), 2, "--gpus"),
        (("cluster.gpu=Voodoo",), 1, "cluster.gpu=Voodoo is no GPU whose speed is known"),
        (("model.path=models/Mine",), 1, "names no published model"),
    ],
)
def test_exit_code(words: tuple[str, ...], code: int, told: str) -> None:
    result = CliRunner().invoke(cli.app, ["plan", RECIPE, *words])
    assert result.exit_code == code, result.output
    assert told in result.output and "Traceback" not in result.output
