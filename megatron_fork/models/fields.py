"""What the fields of a Hugging Face config may be: types, possible sizes, and which values fit each other.

Config classes of transformers check some of this with their own messages, and only after they have made lists as long as a
field says. So the fields are checked as written, before a class reads them, and again as the class holds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from megatron_fork.errors import MegatronForkError, ModelError

# Several times the values of any published model.
_LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**18,
    "intermediate_size": 2**20,
    "moe_intermediate_size": 2**20,
    "num_hidden_layers": 1000,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**13,
    "num_experts": 2**12,
    "num_local_experts": 2**12,
    "num_experts_per_tok": 2**12,
    "max_position_embeddings": 2**31 - 1,
    "num_labels": 2**16,
}
_MAY_BE_NULL = {"head_dim", "num_key_value_heads", "num_labels"}
_LARGEST_NUMBER = {"rms_norm_eps": 1.0, "initializer_range": 1000.0, "rope_theta": 1e15}
_FLAGS = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window", "norm_topk_prob")
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_DEEPEST = 16
_HINT = "see the config.json of the model as it was published"


def shown(value: object) -> str:
    """A value for an error message, on one line and short."""
    try:
        text = str(value).lower() if isinstance(value, bool) else str(value)
    except (RecursionError, ValueError):  # too deep, or more digits than Python prints
        return f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:80] + "..."


def check_fields(fields: Mapping[Any, Any], where: str, error: type[MegatronForkError] = ModelError) -> None:
    """Raise `error` for the first field whose type or size a model cannot have; missing fields are not checked.

    Args:
        fields: as they are written.
        where: put before a field's name, such as `model.hf_config.`.
        error: class of the error.

    """
    for name, value in fields.items():
        if name == "quantization_config" and value:
            method = value.get("quant_method") if isinstance(value, Mapping) else None
            raise error(
                f"{where}quantization_config={shown(value)}: the weights are quantised"
                + (f" by {shown(method)}" if isinstance(method, str) else ""),
                hint="quantised weights are not supported: take the model's bf16 folder",
            )
        reason = _wrong(name, value)
        if reason:
            raise error(f"{where}{shown(name)}={shown(value)}, {reason}", hint=_HINT)
    layers, kinds = fields.get("num_hidden_layers"), fields.get("layer_types")
    if layers is not None and kinds is not None and len(kinds) != layers:
        raise error(
            f"{where}layer_types has {len(kinds)} entries, but num_hidden_layers={layers}",
            hint="num_hidden_layers and layer_types must match: edit both, or remove layer_types",
        )
    both = [shown(fields[name]).removeprefix("torch.") for name in ("dtype", "torch_dtype") if fields.get(name)]
    if len(set(both)) > 1:
        raise error(
            f"{where}dtype={both[0]}, but torch_dtype={both[1]}", hint="remove the one that the weights do not have"
        )


def _wrong(name: object, value: object) -> str:
    """What is wrong with a field; empty if nothing is."""
    if not isinstance(name, str):
        return "which has a name that is not text"
    if _depth(value) > _DEEPEST:
        return f"which is nested more than {_DEEPEST} levels deep"
    if name in _LARGEST and not (value is None and name in _MAY_BE_NULL):
        if type(value) is not int:
            return "which is not a whole number"
        if not 1 <= value <= _LARGEST[name]:
            return f"which is not between 1 and {_LARGEST[name]:,}"
    if name in _LARGEST_NUMBER and not (name == "rope_theta" and value is None):
        if not is_number(value):
            return "which is not a finite number"
        if not 0.0 <= float(value) <= _LARGEST_NUMBER[name]:  # type: ignore[arg-type]
            return f"which is not between 0 and {_LARGEST_NUMBER[name]:g}"
    if name in _FLAGS and type(value) is not bool:
        return "which is neither true nor false"
    if name in ("dtype", "torch_dtype") and value is not None and shown(value).removeprefix("torch.") not in _DTYPES:
        return f"which is not one of {', '.join(_DTYPES)}"
    if name in ("rope_parameters", "rope_scaling") and not (value is None or isinstance(value, Mapping)):
        return "which is not a mapping of fields"
    if name in ("architectures", "layer_types") and value is not None and not _is_list_of_text(value):
        return "which is not a list of names"
    return ""


def check_together(config: PretrainedConfig) -> None:
    """Raise `ModelError` if fields of a config, each possible alone, do not fit each other."""
    found = vars(config)
    check_fields(found, "model config ")
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.hidden_size
    if groups is None or heads % groups:
        raise ModelError(
            f"model config num_key_value_heads={groups} does not divide num_attention_heads={heads}", hint=_HINT
        )
    head = found.get("head_dim")
    if head is None and width % heads:
        raise ModelError(f"model config num_attention_heads={heads} does not divide hidden_size={width}", hint=_HINT)
    if (head or width // heads) % 2:
        raise ModelError(
            f"model config head_dim={head or width // heads} is odd", hint="rotary positions rotate pairs of a head"
        )
    pad = found.get("pad_token_id")
    if pad is not None and (type(pad) is not int or not -config.vocab_size <= pad < config.vocab_size):
        raise ModelError(
            f"model config pad_token_id={shown(pad)} is not a token of vocab_size={config.vocab_size}",
            hint="use the tokenizer's id, or null",
        )
    kinds = found.get("layer_types")
    if kinds is not None and len(kinds) != config.num_hidden_layers:
        raise ModelError(
            f"model config layer_types has {len(kinds)} entries, num_hidden_layers={config.num_hidden_layers}",
            hint=_HINT,
        )
    if other := [kind for kind in kinds or () if kind != "full_attention"]:
        # Without use_sliding_window, which has its own error, such a layer would have no window.
        raise ModelError(
            f"model config layer_types has {shown(other[0])}, which is not supported",
            hint="use a model with full attention",
        )


def is_number(value: object) -> bool:
    """Whether the value is a finite number and not a flag."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)
    )


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value)


def _depth(value: object) -> int:
    """Levels of containers, counted without recursion and only up to one above the limit."""
    level, depth = [value], 0
    while depth <= _DEEPEST:
        level = [
            entry
            for each in level
            if isinstance(each, Mapping | list | tuple)
            for entry in (each.values() if isinstance(each, Mapping) else each)
        ]
        if not level:
            break
        depth += 1
    return depth
