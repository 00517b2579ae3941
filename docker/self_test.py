"""What an image must be able to do, in a minute: its packages import, and a small computation of its part runs.

python3 self_test.py trainer|vllm|sglang. Exit code 0 only if every line says ok. Without a GPU the computations run on the CPU,
and kernels are imported only.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

PACKAGES = {
    "trainer": (
        "torch megatron.core transformers transformer_engine.pytorch flash_attn amp_C fused_weight_gradient_mlp_cuda".split()
    ),
    "vllm": "torch vllm megatron_fork.serving.vllm_worker megatron_fork.serving.vllm_temperature".split(),
    "sglang": "torch sglang megatron_fork.serving.sglang_server megatron_fork.serving.sglang_temperature".split(),
}
# One step of the quickstart with one update, without what would take longer than the image's first test may.
STEP = (
    "sft.steps=1 train.steps=1 train.prompts_per_step=2 train.prompts_per_mini_batch=2 rollout.samples=2 data.held_out=2 "
    "rollout.dynamic_sampling=false rollout.max_response_tokens=32 evaluation.samples=1 evaluation.every=0 "
    "objective.entropy_coef=0.01"
).split()


def imports(name: str) -> None:
    importlib.import_module(name)


def computes() -> None:
    """Entropies of one row, by the code that engine and trainer share."""
    import torch

    from megatron_fork.serving import scale_by_entropy

    device = "cuda" if torch.cuda.is_available() else "cpu"
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]], device=device)
    found = scale_by_entropy(logits + 1, torch.tensor([[0.5, 2.0, 1.0]], device=device))
    # Four equal logits have ln 4 nats, above the threshold: the temperature is 2.
    assert torch.allclose(found, torch.full_like(logits, 0.5)), found


def trains() -> None:
    """One step of the quickstart."""
    recipe = Path(__file__).resolve().parent.parent / "examples" / "quickstart.yaml"
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "megatron_fork", "train", str(recipe), f"run.folder={folder}/run", *STEP]
        done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr).strip().splitlines()[-3:]


def tried(name: str, work: Callable[[], None]) -> bool:
    try:
        work()
    except Exception as error:  # whatever is wrong with a package is this line's to say
        print(f"FAILED {name}: {type(error).__name__}: {error}")
        return False
    print(f"ok     {name}")
    return True


def main(part: str) -> int:
    if part not in PACKAGES:
        print(f"error: {part!r} is not a part of an image\n  one of {', '.join(PACKAGES)}", file=sys.stderr)
        return 2
    passed = [tried(f"import {name}", lambda name=name: imports(name)) for name in PACKAGES[part]]
    passed.append(tried("entropy of a row", computes))
    if part == "trainer":
        passed.append(tried("one step of the quickstart", trains))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) == 2 else ""))
