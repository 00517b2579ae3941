"""Logits are divided by the temperature that training's own entropy chooses, row by row."""

import subprocess
import sys

import pytest
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_temperature_zero_the_most_likely_token_alone_is_left(dtype: torch.dtype) -> None:
    """Also where others are as likely: the first of them, as the engines' greedy decoding takes it."""
    torch.manual_seed(0)
    logits = (torch.randn(40, 50) * torch.linspace(0.1, 6.0, 40)[:, None]).round(decimals=0).to(dtype)
    before, entropy = logits.clone(), token_statistics(logits, torch.zeros(40, dtype=torch.long)).entropy
    for high, low in ((0.0, 1.0), (1.0, 0.0), (0.0, 0.5), (0.0, 0.0)):
        asked = EntropyTemperature(threshold=2.0, high=high, low=low)
        scaled = scale_by_entropy(logits, torch.tensor([asked.parameters]).expand(40, 3))
        probability = scaled.double().softmax(-1)
        for row, expected in enumerate(torch.where(entropy > 2.0, high, low)):
            if expected == 0.0:
                assert probability[row].max() == 1.0 and probability[row].argmax() == logits[row].argmax()
                assert token_statistics(scaled[row], logits[row].argmax()).logprob == 0.0
            else:
                torch.testing.assert_close(scaled[row], logits[row] / expected.to(dtype))
    assert torch.equal(logits, before) and scaled.dtype == dtype


def test_what_runs_in_engines_needs_no_megatron() -> None:
    """An engine's environment has torch and the engine: with megatron-core out of reach the room is still imported."""
    blocked = "import sys; sys.modules['megatron'] = sys.modules['transformers'] = None; import megatron_fork.serving"
    subprocess.run([sys.executable, "-c", blocked], check=True, cwd=PROJECT)
