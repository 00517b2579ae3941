"""Layers are chosen by what the machine has, and what they cannot do is refused by name, before anything is built."""

import pytest
import torch
from support.tiny_qwen3 import family_config, tiny_config

from megatron_fork.config import RunConfig
from megatron_fork.distributed import ParallelConfig
from megatron_fork.errors import ConfigError
from megatron_fork.models import ComputeConfig, build, check_fused, choose_backend, compute
from megatron_fork.models.compute_limits import eight_bits_lack
from megatron_fork.policy import PolicyConfig
from megatron_fork.run import check_kernels

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
EVEN = tiny_config(hidden_size=64, intermediate_size=96, num_key_value_heads=4)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with an H100 and Transformer Engine."""
    monkeypatch.setattr(compute, "unusable", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_float32_is_not_multiplied_as_tf32_unless_asked(hopper: None) -> None:
    assert choose_backend(ComputeConfig(), torch.bfloat16).backend == "transformer_engine"
    assert choose_backend(ComputeConfig(), torch.float32).backend == "local"
    asked = choose_backend(ComputeConfig(backend="transformer_engine"), torch.float32)
    assert asked.backend == "transformer_engine" and "TF32" in asked.reason


def test_kernels_of_local_layers_may_be_chosen_where_float32_takes_local_layers(hopper: None) -> None:
    asked = ComputeConfig(attention="sdpa", elementwise="torch")
    check_kernels(RunConfig(policy=PolicyConfig(precision="fp32"), compute=asked))
    with pytest.raises(ConfigError, match=r"compute.attention=sdpa is for local layers"):
        check_kernels(RunConfig(policy=PolicyConfig(precision="bf16"), compute=asked))


def test_what_needs_transformer_engine_says_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        compute, "unusable", lambda: "the package transformer_engine is installed but cannot be imported: no"
    )
    chosen = choose_backend(ComputeConfig())
    assert chosen.backend == "local" and "cannot be imported: no" in chosen.reason
    for wanted in ({"backend": "transformer_engine"}, {"offload_layers": 1}, {"fp8": "hybrid"}):
        with pytest.raises(ConfigError, match="cannot be imported: no"):
            choose_backend(ComputeConfig(**wanted))


def test_attention_that_yarn_scales_is_not_left_to_the_fused_rotation(hopper: None) -> None:
    scaled = build.transformer_config(tiny_config(rope_parameters=YARN), ParallelConfig(), dtype=torch.bfloat16)
    assert not scaled.apply_rope_fusion  # which drops the factor over packed rows
    chosen = choose_backend(ComputeConfig())
    fields = compute.compute_fields(ComputeConfig(), chosen, has_experts=False, scales_attention=False)
    assert fields["apply_rope_fusion"]


@pytest.mark.parametrize(
    ("recipe", "capability", "cuda", "lacks"),
    [
        ("delayed", (8, 0), "13.0", "8.9"),
        ("tensorwise", (8, 6), "12.4", "8.9"),
        ("delayed", (8, 9), "12.4", ""),
        ("tensorwise", (9, 0), "12.4", ""),
        ("blockwise", (8, 9), "13.0", "9.0"),
        ("blockwise", (9, 0), "12.8", "CUDA 12.9"),
        ("blockwise", (9, 0), "12.10", ""),
        ("blockwise", (10, 0), "13.0", ""),
        ("mxfp8", (9, 0), "13.0", "10.0"),
        ("mxfp8", (10, 3), "13.0", ""),
        ("mxfp8", (12, 0), "13.0", "10.0"),
    ],
)
def test_recipes_of_8_bits_by_generation(recipe: str, capability: tuple[int, int], cuda: str, lacks: str) -> None:
    found = eight_bits_lack(recipe, capability, cuda)
    assert lacks in found and bool(lacks) == bool(found)


def test_a_recipe_of_another_generation_is_refused(hopper: None) -> None:
    with pytest.raises(ConfigError, match=r"fp8_recipe=mxfp8 needs compute capability 10.0 .*this GPU has 9.0"):
        choose_backend(ComputeConfig(fp8="e4m3", fp8_recipe="mxfp8"))


@pytest.mark.parametrize(
    ("fields", "parallel", "dtype", "told"),
    [
        ({"offload_layers": 1}, {"pipeline": 2}, torch.bfloat16, "offload_layers=1 with parallel.pipeline=2"),
        ({"offload_layers": 2}, {}, torch.bfloat16, "offload_layers=2, but the model has 2 layers"),
        ({"fp8": "hybrid"}, {}, torch.float32, "fp8=hybrid with policy.precision=fp32"),
        ({"fp8": "e4m3", "fp8_recipe": "mxfp8"}, {"tensor": 4}, torch.bfloat16, "multiples of 32: .* is 48"),
        ({"fp8": "hybrid"}, {"tensor": 4}, torch.bfloat16, "multiples of 16: intermediate_size is 24"),
    ],
)
def test_refused_by_name(fields: dict, parallel: dict, dtype: torch.dtype, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_fused(EVEN, ParallelConfig(**parallel), ComputeConfig(**fields), dtype)


def test_widths_of_experts_count_in_8_bits() -> None:
    config = family_config("qwen3_moe", moe_intermediate_size=24)
    with pytest.raises(ConfigError, match="moe_intermediate_size is 24"):
        check_fused(config, ParallelConfig(), ComputeConfig(fp8="hybrid"), torch.bfloat16)


def test_what_fits_is_not_refused() -> None:
    check_fused(EVEN, ParallelConfig(tensor=2), ComputeConfig(fp8="hybrid"), torch.bfloat16)
    check_fused(EVEN, ParallelConfig(), ComputeConfig(offload_layers=1), torch.bfloat16)
