"""Rotary frequencies are Hugging Face's bit for bit at published sizes, out to the longest position."""

from typing import Any

import pytest
import torch
from support.tiny_qwen3 import family_config, megatron_model
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_fork.errors import ModelError
from megatron_fork.models.rotary import rotary_positions

LAST_POSITION = 32767
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "llama 3.1": LLAMA3,
    "llama 3.2": {**LLAMA3, "factor": 32.0},
    "yarn": YARN,
    "yarn, bounds not rounded": {**YARN, "truncate": False, "beta_fast": 24, "beta_slow": 2},
    "yarn with mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9},
    "yarn with mscale 0": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.0},
    "yarn with its attention factor": {**YARN, "attention_factor": 0.9},
}


@pytest.mark.parametrize("parameters", SCALINGS.values(), ids=SCALINGS)
def test_cosines_and_sines(parameters: dict) -> None:
    config = family_config(
        "llama", head_dim=128, num_hidden_layers=1, max_position_embeddings=131072, rope_parameters=dict(parameters)
    )
    theirs = LlamaRotaryEmbedding(config)
    positions = torch.arange(LAST_POSITION + 1)
    cosine, sine = theirs(torch.zeros(1), positions[None])
    with megatron_model(config, None) as ours:
        found = ours.rotary_pos_emb(LAST_POSITION + 1)
        angle, scale = found if isinstance(found, tuple) else (found, 1.0)
    assert scale == pytest.approx(theirs.attention_scaling, rel=1e-15)
    angle = angle[:, 0, 0]
    torch.testing.assert_close(angle[:, :64], positions[:, None] * theirs.inv_freq, rtol=0.0, atol=0.0)
    torch.testing.assert_close(angle.cos() * scale, cosine[0], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(angle.sin() * scale, sine[0], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({**LLAMA3, "low_freq_factor": 2.0}, r"rope_parameters\.low_freq_factor=2\.0 is not supported"),
        ({**LLAMA3, "high_freq_factor": 8.0}, r"rope_parameters\.high_freq_factor=8\.0 is not supported"),
        (
            {**LLAMA3, "original_max_position_embeddings": 4096},
            r"rope_parameters\.original_max_position_embeddings=4096 is not supported",
        ),
        ({**YARN, "factor": 1.0, "attention_factor": 1.2}, r"attention_factor=1\.2 is not supported with factor=1"),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}, "rope_type=linear is not supported"),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "rope_type=dynamic is not supported"),
        ({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}, r"partial_rotary_factor=0\.5"),
    ],
)
def test_what_megatron_cannot_express_is_refused(parameters: dict, named: str) -> None:
    with pytest.raises(ModelError, match=named) as caught:
        rotary_positions(family_config("llama", rope_parameters=parameters))
    assert caught.value.hint
