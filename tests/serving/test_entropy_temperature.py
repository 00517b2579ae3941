"""Logits are divided by the temperature that training's own entropy chooses, row by row."""

import subprocess
import sys

import torch
from support.commands import PROJECT

from megatron_fork.serving import EntropyTemperature, scale_by_entropy
from megatron_fork.vocab_parallel import token_statistics


def test_rows_get_their_temperature() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 50) * torch.linspace(0.1, 6.0, 40)[:, None]
    entropy = token_statistics(logits, torch.zeros(40, dtype=torch.long)).entropy
    asked = EntropyTemperature(threshold=2.0, high=1.5, low=0.5)
    scaled = scale_by_entropy(logits, torch.tensor([asked.parameters]).expand(40, 3))
    assert 5 < int((entropy > 2.0).sum()) < 35
    torch.testing.assert_close(scaled, logits / torch.where(entropy > 2.0, 1.5, 0.5)[:, None])
    assert EntropyTemperature().is_plain and not asked.is_plain


def test_what_runs_in_engines_needs_no_megatron() -> None:
    """An engine's environment has torch and the engine: with megatron-core out of reach the room is still imported."""
    blocked = "import sys; sys.modules['megatron'] = sys.modules['transformers'] = None; import megatron_fork.serving"
    subprocess.run([sys.executable, "-c", blocked], check=True, cwd=PROJECT)
