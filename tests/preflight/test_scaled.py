"""The small model is of the recipe's family, divides over the recipe's layout, and is built by the same code."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import QUICKSTART
from support.tiny_qwen3 import FAMILIES, family_config

from megatron_fork import models
from megatron_fork.config import load_config
from megatron_fork.preflight.scaled import scaled_down

LARGE = {
    "vocab_size": 1000,
    "hidden_size": 4096,
    "intermediate_size": 8192,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
_EXPERTS = {"num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 1024}


@settings(deadline=None, max_examples=30)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    tensor=st.sampled_from([1, 2, 4, 8]),
    pipeline=st.sampled_from([1, 2, 4]),
    virtual=st.sampled_from([1, 2]),
    expert=st.sampled_from([2, 4, 8]),
    together=st.sampled_from([0, 1, 3]),
)
def test_any_family_under_any_layout(
    family: str, tensor: int, pipeline: int, virtual: int, expert: int, together: int
) -> None:
    has_experts = family == "qwen3_moe"
    words = [
        *(f"parallel.tensor={tensor}", f"parallel.pipeline={pipeline}", f"parallel.sequence={str(tensor > 1).lower()}"),
        *([f"parallel.virtual_pipeline={virtual}"] if pipeline > 1 else []),
        *([f"parallel.expert={expert}"] if has_experts else []),
        *(["compute.recompute=full", f"compute.recompute_layers={together}"] if together else []),
    ]
    config = load_config(QUICKSTART, words)
    large = family_config(family, **LARGE, **(_EXPERTS if has_experts else {}))
    small = scaled_down(large, config, config.parallel)
    assert models.family_of(small) is models.family_of(large) and small.vocab_size == large.vocab_size
    models.check_divides(small, config.parallel)
    stages = pipeline * (virtual if pipeline > 1 else 1)
    assert small.num_hidden_layers // stages % max(1, together) == 0
    assert small.num_hidden_layers <= large.num_hidden_layers
    assert models.count_parameters(small) < models.count_parameters(large) / 8
    assert large.num_hidden_layers == 48, "the recipe's own config stays"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_it_is_small(family: str) -> None:
    config = load_config(QUICKSTART)
    assert models.count_parameters(scaled_down(family_config(family, **LARGE), config, config.parallel)) < 1_000_000
