"""How a model computes on this machine's hardware; none of it changes a result beyond rounding."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Literal

import torch

from megatron_fork.errors import ConfigError
from megatron_fork.models.config import ComputeConfig, ElementwiseKernels


@dataclass(frozen=True)
class Chosen:
    """The chosen layers, and the reason."""

    backend: Literal["local", "transformer_engine"]
    reason: str


def choose_backend(config: ComputeConfig) -> Chosen:
    """The layers that `config.backend` means on this machine; raises `ConfigError` if it does not have them."""
    lacking = _lacking()
    wants = config.backend == "transformer_engine" or config.offload_layers > 0 or config.fp8 != "none"
    if config.backend == "local":
        return Chosen("local", "compute.backend=local")
    if lacking and wants:
        asked = "backend=transformer_engine" if config.backend == "transformer_engine" else "offload_layers or fp8"
        raise ConfigError(
            f"compute.{asked} needs Transformer Engine: {lacking}",
            hint="install transformer-engine[pytorch] on a GPU machine, or set compute.backend=local",
        )
    if lacking:
        return Chosen("local", lacking)
    return Chosen("transformer_engine", "a GPU and Transformer Engine are available")


def _lacking() -> str:
    if not torch.cuda.is_available():
        return "no GPU is visible"
    if not is_installed("transformer_engine"):
        return "the package transformer_engine is not installed"
    return ""


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


def compute_fields(config: ComputeConfig, chosen: Chosen, *, has_experts: bool = False) -> dict[str, Any]:
    """The fields of Megatron's TransformerConfig that `config` decides."""
    fused = chosen.backend == "transformer_engine"
    fields: dict[str, Any] = {
        "use_cpu_initialization": not torch.cuda.is_available(),
        "bias_activation_fusion": fused,
        "bias_dropout_fusion": fused,
        "apply_rope_fusion": fused,
        "masked_softmax_fusion": False,  # belongs to the unfused attention of neither backend
        # Its kernel is apex's, which writes weight gradients straight into Megatron's buffer.
        "gradient_accumulation_fusion": fused and is_installed("fused_weight_gradient_mlp_cuda"),
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
