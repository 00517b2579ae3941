"""mbridge, the bridge that verl uses, makes the same Hugging Face tensors of the same Megatron parameters."""

import importlib
import re

import pytest
import torch
from support.tiny_qwen3 import family_config, hugging_face_model, megatron_model

from megatron_fork.conversion import PublishedWeights, iter_hf_weights, load_weights
from megatron_fork.distributed import compatibility

BRIDGES = {
    "qwen3": ("qwen3", "Qwen3Bridge"),
    "qwen3_moe": ("qwen3moe", "Qwen3MoEBridge"),
    "qwen2": ("qwen2", "Qwen2Bridge"),
    "llama": ("llama", "LLaMABridge"),
}


def name_of_transformer_engine(name: str, *, experts: bool) -> str:
    """The names of Transformer Engine's layers, the only ones that mbridge knows."""
    name = name.replace("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight")
    if not experts:
        return name.replace("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight")
    return re.sub(r"local_experts\.(\d+)\.(linear_fc[12])\.weight", r"\2.weight\1", name)


@pytest.mark.parametrize("family", BRIDGES)
def test_the_same_tensors(family: str) -> None:
    compatibility.install()
    pytest.importorskip("mbridge", reason="the comparison needs mbridge")
    module, bridge_class = BRIDGES[family]
    theirs = getattr(importlib.import_module(f"mbridge.models.{module}"), bridge_class)
    config = family_config(family, tie_word_embeddings=False)
    with megatron_model(config, None) as model:
        load_weights(model, PublishedWeights(hugging_face_model(config).state_dict()))
        ours = dict(iter_hf_weights(model))
        bridge = theirs(config)
        compared = set()
        for name, parameter in model.named_parameters():
            known = name_of_transformer_engine(name, experts=family == "qwen3_moe")
            for published, tensor in zip(*bridge._weight_to_hf_format(known, parameter.detach()), strict=True):
                assert torch.equal(tensor, ours[published]), published
                compared.add(published)
    assert compared == ours.keys()
