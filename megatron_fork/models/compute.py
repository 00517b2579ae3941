"""How a model computes on this machine's hardware; none of it changes a result beyond rounding."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Literal

import torch

from megatron_fork.distributed.fused_kernels import unusable
from megatron_fork.errors import ConfigError
from megatron_fork.models.compute_limits import eight_bits_lack
from megatron_fork.models.config import ComputeConfig, ElementwiseKernels


@dataclass(frozen=True)
class Chosen:
    """The chosen layers, and the reason."""

    backend: Literal["local", "transformer_engine"]
    reason: str


def choose_backend(config: ComputeConfig, dtype: torch.dtype = torch.bfloat16) -> Chosen:
    """The layers that `config.backend` means on this machine for a model of `dtype`; raises `ConfigError` if it lacks them."""
    if config.backend == "local":
        return Chosen("local", "compute.backend=local")
    lacking = unusable()
    wants = config.backend == "transformer_engine" or config.offload_layers > 0 or config.fp8 != "none"
    if lacking and wants:
        asked = "backend=transformer_engine" if config.backend == "transformer_engine" else "offload_layers or fp8"
        raise ConfigError(
            f"compute.{asked} needs Transformer Engine: {lacking}",
            hint="docs/gpu.md says how to install it on a GPU machine; compute.backend=local does without",
        )
    if lacking:
        return Chosen("local", lacking)
    if config.fp8 != "none":
        lacking = eight_bits_lack(config.fp8_recipe, torch.cuda.get_device_capability(), torch.version.cuda or "0")
        if lacking:
            raise ConfigError(
                f"compute.fp8_recipe={config.fp8_recipe} needs {lacking}",
                hint="tensorwise and delayed run on H100 and B200; compute.fp8=none everywhere",
            )
    if dtype == torch.float32 and not wants:
        return Chosen("local", "policy.precision=fp32, and Transformer Engine's products of float32 are made in TF32")
    if dtype == torch.float32:
        return Chosen("transformer_engine", "the recipe asks for it; its products of float32 are made in TF32")
    return Chosen("transformer_engine", "a GPU and Transformer Engine are available")


@dataclass(frozen=True)
class ChosenElementwise:
    """The kernels of norms, rotations and SwiGLU, and the reason."""

    kernels: ElementwiseKernels
    reason: str


def check_kernels_are_local(config: ComputeConfig, chosen: Chosen) -> None:
    """Raise `ConfigError` if kernels of local layers are asked for, and `auto` has chosen others."""
    for name, value in (("attention", config.attention), ("elementwise", config.elementwise)):
        if chosen.backend != "local" and value != "auto":
            raise ConfigError(
                f"compute.{name}={value} is for local layers, and compute.backend=auto has found Transformer Engine",
                hint=f"set compute.backend=local, or compute.{name}=auto",
            )


def choose_elementwise(config: ComputeConfig) -> ChosenElementwise:
    """The kernels that `config.elementwise` means on this machine; raises `ConfigError` if it does not have them."""
    if config.elementwise == "torch":
        return ChosenElementwise("torch", "compute.elementwise=torch")
    on_gpu, installed = torch.cuda.is_available(), is_installed("triton")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if config.elementwise == "triton":
        if not installed:
            raise ConfigError("compute.elementwise=triton, but Triton is not installed", hint="pip install triton")
        if not on_gpu and not interpreted:
            raise ConfigError("compute.elementwise=triton needs a GPU", hint="set compute.elementwise=auto")
        return ChosenElementwise("triton", "compute.elementwise=triton")
    if on_gpu and installed:
        return ChosenElementwise("triton", "a GPU and Triton are here")
    return ChosenElementwise("torch", "Triton is not installed" if on_gpu else "no GPU is visible")


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def compute_fields(
    config: ComputeConfig, chosen: Chosen, *, has_experts: bool, scales_attention: bool
) -> dict[str, Any]:
    """The fields of Megatron's TransformerConfig that `config` decides; `scales_attention`: see `RotaryPositions`."""
    fused = chosen.backend == "transformer_engine"
    fields: dict[str, Any] = {
        "use_cpu_initialization": not torch.cuda.is_available(),
        "bias_activation_fusion": fused,
        "bias_dropout_fusion": fused,
        # Over packed rows Megatron's call of the fused kernel leaves the factor out, without an error.
        "apply_rope_fusion": fused and not scales_attention,
        "masked_softmax_fusion": False,  # belongs to the unfused attention of neither backend
        # Of Megatron's own linear layers, by a kernel of apex: `fused_layers.accumulate_in_buffers` does without.
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": fused,
    }
    if config.recompute == "full":
        fields |= {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": config.recompute_layers,
        }
    elif config.recompute == "selective":
        # Local layers have a way of their own, which Megatron has no name for; it has none for local experts.
        modules = ["core_attn"] if fused or has_experts else []
        fields |= {"recompute_granularity": "selective", "recompute_modules": modules}
    if config.offload_layers:
        fields |= {"cpu_offloading": True, "cpu_offloading_num_layers": config.offload_layers}
    if config.fp8 != "none":
        fields |= {"fp8": config.fp8, "fp8_recipe": config.fp8_recipe}
    return fields
