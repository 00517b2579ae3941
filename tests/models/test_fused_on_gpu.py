"""Transformer Engine's kernels against local layers and Hugging Face: log-probs, gradients, recompute, offload, 8 bits.

A difference is measured against float32 on the same weights (those of bfloat16): fused layers may be at most twice as far from
it as local layers are, for both round as often. 8 bits, which keep 3 of a number's bits, have a bound of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.gpu import DEVICE, NEEDS_GPU
from support.tiny_qwen3 import family_config, hugging_face_model, megatron_model
from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork.conversion.parameters import local_parameters
from megatron_fork.distributed.fused_kernels import unusable
from megatron_fork.models import ComputeConfig, PackedRow
from megatron_fork.models.compute_limits import eight_bits_lack

pytestmark = [pytest.mark.gpu, NEEDS_GPU]
LENGTHS = (160, 160, 192, 640, 63, 1)  # 1,216 tokens, which products in 8 bits can take
FAMILIES = ("qwen3", "qwen2", "llama", "qwen3_moe")
SIZES: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Result:
    """Log-probs `[tokens]` of the targets, and the gradients of their mean by whole names."""

    logprob_t: Tensor
    gradients: dict[str, Tensor]

    def apart(self, other: Result) -> tuple[float, float]:
        """Largest difference of log-probs, and the norm of the gradients' difference over their norm."""
        names = other.gradients.keys()
        difference = sum(float((self.gradients[name] - other.gradients[name]).square().sum()) for name in names)
        norm = sum(float(other.gradients[name].square().sum()) for name in names)
        return float((self.logprob_t - other.logprob_t).abs().max()), (difference / norm) ** 0.5


def config_of(family: str, **fields: Any) -> PretrainedConfig:
    experts = {"moe_intermediate_size": 128, "num_experts": 4} if family == "qwen3_moe" else {}
    return family_config(family, **{**SIZES, **experts, **fields})


def weights_of(config: PretrainedConfig) -> dict[str, Tensor]:
    """Random, and the same values in every precision."""
    return {name: tensor.bfloat16().float() for name, tensor in hugging_face_model(config).state_dict().items()}


def row(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, SIZES["vocab_size"], (2, sum(lengths)), generator=generator)
    places = torch.cat([torch.arange(length) for length in lengths])
    return tokens[:1].to(DEVICE), tokens[1:].to(DEVICE), places[None].to(DEVICE)


def run(
    config: PretrainedConfig,
    weights: dict[str, Tensor],
    *,
    dtype: torch.dtype = torch.bfloat16,
    apart: bool = False,
    **compute: Any,
) -> Result:
    """A forward and a backward pass over one packed row, or over its sequences one at a time."""
    tokens, targets, places = row(LENGTHS)
    with megatron_model(config, weights, dtype=dtype, compute=ComputeConfig(**compute)) as model:
        logprobs, start = [], 0
        for lengths in [(length,) for length in LENGTHS] if apart else [LENGTHS]:
            part = slice(start, start := start + sum(lengths))
            edges = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()
            packed = PackedRow.of(lengths, edges, places[0, part])
            answer = model(tokens[:, part], places[:, part], None, labels=targets[:, part], packed_seq_params=packed)
            (-answer.logprob.sum() / tokens.numel()).backward()
            logprobs.append(answer.logprob.detach().float())
        gradients = {
            name: parameter.grad.float().clone()
            for name, parameter in local_parameters([model]).items()
            if parameter.grad is not None
        }
        return Result(torch.cat(logprobs), gradients)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[PretrainedConfig, dict[str, Tensor], Result, Result]]:
    """A model's config and weights, what float32 makes of it, and what local layers do in bfloat16."""
    if reason := unusable():
        pytest.skip(f"needs Transformer Engine: {reason}")
    config = config_of(request.param)
    weights = weights_of(config)
    exact = run(config, weights, dtype=torch.float32, backend="local")
    yield config, weights, exact, run(config, weights, backend="local")


def test_float32_is_hugging_face(case: Any) -> None:
    config, weights, exact, _ = case
    theirs = hugging_face_model(config)
    theirs.load_state_dict(weights)
    theirs = theirs.to(DEVICE)
    tokens, targets, _ = row(LENGTHS)
    start, parts = 0, []
    with torch.no_grad():
        for length in LENGTHS:
            part = slice(start, start := start + length)
            logits = theirs(input_ids=tokens[:, part]).logits[0].float()
            parts.append(logits.log_softmax(-1).gather(1, targets[0, part, None])[:, 0])
    assert float((torch.cat(parts) - exact.logprob_t).abs().max()) < 1e-3


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_bfloat16_is_as_near_to_float32_as_local_layers(case: Any, recompute: str) -> None:
    config, weights, exact, local = case
    fused = run(config, weights, backend="transformer_engine", recompute=recompute)
    allowed, found = local.apart(exact), fused.apart(exact)
    print(f"{config.model_type}, recompute={recompute}: fused {found}, local {allowed}")
    assert fused.gradients.keys() == local.gradients.keys()
    assert found[0] < 2.0 * allowed[0] and found[1] < 2.0 * allowed[1]


def test_float32_by_tf32(case: Any) -> None:
    """10 bits of each operand: a quarter of what bfloat16's 8 bits move."""
    config, weights, exact, local = case
    fused = run(config, weights, dtype=torch.float32, backend="transformer_engine")
    assert fused.apart(exact)[0] < 0.5 * local.apart(exact)[0]


def test_a_packed_row_is_its_sequences_one_at_a_time(case: Any) -> None:
    config, weights, exact, local = case
    packed = run(config, weights, backend="transformer_engine")
    alone = run(config, weights, backend="transformer_engine", apart=True)
    allowed, found = local.apart(exact), packed.apart(alone)
    assert found[0] < 2.0 * allowed[0] and found[1] < 2.0 * allowed[1]


def test_offloaded_activations_change_nothing(case: Any) -> None:
    config, weights, _, _ = case
    kept = run(config, weights, backend="transformer_engine")
    offloaded = run(config, weights, backend="transformer_engine", offload_layers=2)
    assert offloaded.apart(kept)[0] == 0.0 and offloaded.apart(kept)[1] < 1e-3


def test_yarn_keeps_its_factor() -> None:
    if reason := unusable():
        pytest.skip(f"needs Transformer Engine: {reason}")
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 256}
    config = config_of("qwen2", rope_parameters={**yarn, "attention_factor": 1.3})
    weights = weights_of(config)
    exact, local = run(config, weights, dtype=torch.float32, backend="local"), run(config, weights, backend="local")
    found, allowed = run(config, weights, backend="transformer_engine").apart(exact), local.apart(exact)
    assert found[0] < 2.0 * allowed[0] and found[1] < 2.0 * allowed[1]


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
def test_8_bits(recipe: str) -> None:
    """A rounding to 3 bits of mantissa is at most 1/16: over four layers log-probs move less than half a nat."""
    if reason := unusable() or eight_bits_lack(recipe, torch.cuda.get_device_capability(), torch.version.cuda or "0"):
        pytest.skip(f"needs {reason}")
    config = config_of("qwen3")
    weights = weights_of(config)
    exact = run(config, weights, dtype=torch.float32, backend="local")
    rounded = run(
        config, weights, backend="transformer_engine", fp8="e4m3" if recipe == "mxfp8" else "hybrid", fp8_recipe=recipe
    )
    found = rounded.apart(exact)
    print(f"{recipe}: {found}")
    assert torch.isfinite(rounded.logprob_t).all()
    assert found[0] < 0.5 and found[1] < 0.35
