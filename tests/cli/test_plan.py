"""`megatron-fork plan` exits with 0 only if the recipe fits, and otherwise tells the largest part in one line."""

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
