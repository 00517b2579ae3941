"""Which model a run trains, and how its layers compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from megatron_fork.errors import ConfigError
from megatron_fork.recipe import FilePath, NonNegativeFloat, NonNegativeInt, PositiveInt, Settings

Backend = Literal["auto", "local", "transformer_engine"]
AttentionKernel = Literal["sdpa", "varlen", "flash"]
ElementwiseKernels = Literal["torch", "triton"]


@dataclass
class ModelConfig(Settings, room="model"):
    """The model; give exactly one of `path` and `hf_config`."""

    path: FilePath | None = None
    """Folder with config.json, safetensors and a tokenizer."""
    hf_config: dict[str, Any] | None = None
    """Fields of a Hugging Face config, including `model_type`; weights are drawn from the run's seed."""

    def check(self) -> None:
        if self.path and self.hf_config:
            raise ConfigError(
                "model.path and model.hf_config are both given",
                hint="remove one of them; `model.hf_config=null` does it in a command",
            )

    @property
    def is_given(self) -> bool:
        return bool(self.path or self.hf_config)


@dataclass
class ComputeConfig(Settings, room="compute"):
    """Kernels, recomputation and offload of activations, for every network of a run."""

    backend: Backend = "auto"
    """Layers of Transformer Engine or of torch; auto: Transformer Engine on a GPU if it is installed."""
    attention: Literal["auto", AttentionKernel] = "auto"
    """Attention of local layers; auto: flash-attn's kernel, else torch's for variable lengths, else the padded one."""
    elementwise: Literal["auto", ElementwiseKernels] = "auto"
    """Norms, rotations and SwiGLU of local layers; auto: Triton on a GPU if it is installed."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Matrix products computed again in backward: none, the MLP's first (of experts: attention), or all of each layer."""
    recompute_layers: PositiveInt = 1
    """Layers that share one kept input if `recompute=full`."""
    offload_layers: NonNegativeInt = 0
    """Layers per rank whose activations are kept in host memory, 0: none; needs Transformer Engine and no pipeline."""
    fp8: Literal["none", "hybrid", "e4m3"] = "none"
    """Matrix products in 8 bits; needs Transformer Engine and bf16."""
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = "delayed"
    """How the scales of fp8 are chosen, by Transformer Engine's name."""

    def check(self) -> None:
        if self.offload_layers and self.recompute != "none":
            raise ConfigError(
                f"compute.offload_layers={self.offload_layers} with compute.recompute={self.recompute}",
                hint="Megatron either offloads activations or recomputes them: choose one",
            )
        if self.backend == "local" and (self.offload_layers or self.fp8 != "none"):
            raise ConfigError(
                "compute.backend=local has neither offload_layers nor fp8", hint="both need Transformer Engine"
            )
        for name, value in (("attention", self.attention), ("elementwise", self.elementwise)):
            if self.backend == "transformer_engine" and value != "auto":
                raise ConfigError(
                    f"compute.{name}={value} with compute.backend=transformer_engine",
                    hint="Transformer Engine has kernels of its own: leave it at auto, or set compute.backend=local",
                )


@dataclass
class ExpertsConfig(Settings, room="experts"):
    """Training of a mixture of experts; no effect on dense models."""

    balance: NonNegativeFloat = 0.0
    """Coefficient of the balance loss; 0: no balance loss, 1e-4 is mild."""
    replay: bool = False
    """Send tokens to the experts that the rollout engine chose; needs an engine that reports them."""
