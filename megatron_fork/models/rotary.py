"""Rotary positions of a Hugging Face config as Megatron's options: default, Llama 3's scaling, YaRN.

Only what Megatron computes exactly like Hugging Face is supported; anything else is an error with its name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from transformers import PretrainedConfig

from megatron_fork.errors import ModelError
from megatron_fork.models.fields import is_number, shown

# Constants of Megatron's scaling for Llama 3, which has an option only for the factor.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

_REQUIRED = {"llama3": ("factor", *_LLAMA3), "yarn": ("factor", "original_max_position_embeddings")}
_OPTIONAL = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor")
_LARGEST = 1e15
_PUBLISHED = "see the config.json of the model as it was published"


@dataclass(frozen=True)
class RotaryPositions:
    """Arguments of GPTModel, and attributes that it reads from the TransformerConfig."""

    arguments: dict[str, Any]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def scales_attention(self) -> bool:
        """Whether queries and keys are multiplied by a factor, as YaRN's are."""
        return self.arguments["position_embedding_type"] == "yarn"


def rotary_positions(config: PretrainedConfig) -> RotaryPositions:
    """Megatron's options for the config's `rope_parameters`; raises `ModelError` for what they cannot express."""
    parameters = config.rope_parameters or {}
    if "rope_theta" not in parameters:
        raise ModelError(
            "model config rope_parameters has no rope_theta", hint="use a model with one rotary base for all layers"
        )
    kind = parameters.get("rope_type", "default")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ModelError(
            f"model config rope_type={shown(kind)} is not supported", hint=f"supported: {', '.join(sorted(_KINDS))}"
        )
    partial = parameters.get("partial_rotary_factor", 1.0)
    if partial != 1.0:
        raise ModelError(
            f"model config partial_rotary_factor={shown(partial)} is not supported",
            hint="use a model that rotates whole heads",
        )
    _check_numbers(kind, parameters)
    return _KINDS[kind](parameters)


def _check_numbers(kind: str, parameters: dict[str, Any]) -> None:
    """Raise `ModelError` unless the fields that the kind reads are numbers in a possible range."""
    required = ("rope_theta", *_REQUIRED.get(kind, ()))
    for name in required:
        if parameters.get(name) is None:
            raise ModelError(
                f"model config rope_parameters has no {name}, which rope_type={kind} needs", hint=_PUBLISHED
            )
    for name in (*required, *(_OPTIONAL if kind == "yarn" else ())):
        value = parameters.get(name)
        if value is None:
            continue
        positive = name in required
        if not is_number(value) or not 0.0 <= value <= _LARGEST or (positive and value == 0.0):
            raise ModelError(
                f"model config rope_parameters.{name}={shown(value)} is not a number "
                f"{'above 0' if positive else 'of 0 or more'} that positions can have",
                hint=_PUBLISHED,
            )
    if "truncate" in parameters and type(parameters["truncate"]) is not bool:
        raise ModelError(
            f"model config rope_parameters.truncate={shown(parameters['truncate'])} is neither true nor false",
            hint=_PUBLISHED,
        )


def longest_sequence(config: PretrainedConfig) -> int:
    """The number of positions that the model supports; YaRN multiplies the original number by its factor."""
    stated: int = config.max_position_embeddings
    parameters = config.rope_parameters or {}
    if parameters.get("rope_type") != "yarn":
        return stated
    return max(stated, int(parameters["factor"] * parameters["original_max_position_embeddings"]))


def _default(parameters: dict[str, Any]) -> RotaryPositions:
    return RotaryPositions({"position_embedding_type": "rope", "rotary_base": float(parameters["rope_theta"])})


def _llama3(parameters: dict[str, Any]) -> RotaryPositions:
    """Frequencies scaled by wavelength (Llama 3.1 and later)."""
    for name, value in _LLAMA3.items():
        if parameters[name] != value:
            raise ModelError(
                f"model config rope_parameters.{name}={parameters[name]} is not supported with rope_type=llama3",
                hint=f"Megatron's scaling has a fixed {name}={value:g}",
            )
    default = _default(parameters).arguments
    return RotaryPositions({**default, "rope_scaling": True, "rope_scaling_factor": float(parameters["factor"])})


def _yarn(parameters: dict[str, Any]) -> RotaryPositions:
    """YaRN (arXiv 2309.00071): frequencies interpolated below a number of rotations, and scaled attention."""
    factor = float(parameters["factor"])
    mscale, mscale_all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    attention_factor = parameters.get("attention_factor")
    if attention_factor is not None:
        # Megatron has no option for the attention factor itself: 0.1 mscale ln(factor) + 1, divided by the same with
        # mscale_all_dim, must give it.
        if factor <= 1.0:
            raise ModelError(
                f"model config attention_factor={attention_factor} is not supported with factor={factor:g}",
                hint="remove rope_parameters from config.json: a factor of 1 has no effect",
            )
        mscale, mscale_all_dim = (attention_factor - 1.0) / (0.1 * math.log(factor)), 0.0
    elif not (mscale and mscale_all_dim):
        mscale = mscale_all_dim = None
    return RotaryPositions(
        {**_default(parameters).arguments, "position_embedding_type": "yarn"},
        {
            "yarn_rotary_scaling_factor": factor,
            "yarn_original_max_position_embeddings": int(parameters["original_max_position_embeddings"]),
            "yarn_beta_fast": float(parameters.get("beta_fast") or 32),
            "yarn_beta_slow": float(parameters.get("beta_slow") or 1),
            "yarn_mscale": mscale,
            "yarn_mscale_all_dim": mscale_all_dim,
            "yarn_correction_range_round_to_int": parameters.get("truncate", True),
        },
    )


_KINDS = {"default": _default, "llama3": _llama3, "yarn": _yarn}
