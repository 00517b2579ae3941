"""How two configs of a model differ, field by field, and what each difference means."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PretrainedConfig

Weight = Literal["other model", "other results", "other use", "no meaning"]

_ARCHITECTURE = "the architecture: the weights do not fit"
_POSITIONS = "the positions: logits change"
_MEANINGS: dict[str, tuple[Weight, str]] = {
    **dict.fromkeys(
        "architectures model_type hidden_size intermediate_size moe_intermediate_size num_hidden_layers "
        "num_attention_heads num_key_value_heads head_dim vocab_size num_experts tie_word_embeddings "
        "attention_bias mlp_bias decoder_sparse_step mlp_only_layers".split(),
        ("other model", _ARCHITECTURE),
    ),
    **dict.fromkeys("rope_theta rope_scaling rope_parameters".split(), ("other results", _POSITIONS)),
    "rms_norm_eps": ("other results", "the norm's epsilon: logits change"),
    "hidden_act": ("other results", "the activation: logits change"),
    "num_experts_per_tok": ("other results", "experts per token: logits change"),
    "norm_topk_prob": ("other results", "the weights of a token's experts: logits change"),
    "router_aux_loss_coef": ("other use", "the balance loss of other trainers; this project's is experts.balance"),
    **dict.fromkeys(
        "use_sliding_window sliding_window max_window_layers layer_types".split(),
        ("other results", "the attention window: logits of long sequences change"),
    ),
    "max_position_embeddings": ("other use", "the longest sequence that engines accept"),
    **dict.fromkeys(
        "eos_token_id bos_token_id pad_token_id".split(), ("other use", "where generation begins or stops")
    ),
    **dict.fromkeys("dtype torch_dtype".split(), ("other use", "the dtype in which engines load the weights")),
    "use_cache": ("other use", "a default of generation"),
    "initializer_range": ("no meaning", "random weights only"),
    "attention_dropout": ("other use", "dropout in training, which this project does not use"),
    "transformers_version": ("no meaning", "who wrote the file"),
}


@dataclass(frozen=True)
class Difference:
    """A field in which two configs differ."""

    field: str
    left: Any
    right: Any
    weight: Weight
    meaning: str

    def __str__(self) -> str:
        return f"{self.field}: {self.left!r} -> {self.right!r} ({self.meaning})"


def config_differences(left: PretrainedConfig, right: PretrainedConfig) -> list[Difference]:
    """Fields that differ, the most serious first; a field that one side does not have counts as None."""
    ours, theirs = left.to_dict(), right.to_dict()
    for fields in (ours, theirs):
        fields.pop("_name_or_path", None)  # the path it was read from, which is not in the file
    found = [
        _difference(name, ours.get(name), theirs.get(name))
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    order = ("other model", "other results", "other use", "no meaning")
    return sorted(found, key=lambda each: (order.index(each.weight), each.field))


def _difference(name: str, left: Any, right: Any) -> Difference:
    weight, meaning = _MEANINGS.get(name, ("other results", "not known to this project: it may change results"))
    return Difference(name, left, right, weight, meaning)


# Names of the arguments that Megatron-LM stores, and their names in config.json.
_ARGUMENTS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "moe_ffn_hidden_size": "moe_intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "kv_channels": "head_dim",
    "num_experts": "num_experts",
    "moe_router_topk": "num_experts_per_tok",
    "norm_epsilon": "rms_norm_eps",
    "rotary_base": "rope_theta",
}


def argument_differences(arguments: object, config: PretrainedConfig) -> list[Difference]:
    """How the arguments of the training that wrote a Megatron checkpoint differ from `config` where shapes do not show it.

    Megatron-LM stores its parsed command line; anything else in its place is ignored.
    """
    fields = config.to_dict()
    rope = fields.get("rope_parameters") or {}
    fields.setdefault("rope_theta", rope.get("rope_theta"))
    given = vars(arguments) if isinstance(arguments, Namespace) else {}
    differences = []
    for name, field in _ARGUMENTS.items():
        theirs, ours = given.get(name), fields.get(field)
        if theirs is not None and ours is not None and float(theirs) != float(ours):
            weight, meaning = _MEANINGS[field]
            differences.append(Difference(f"{name} ({field})", theirs, ours, weight, meaning))
    tied = bool(config.tie_word_embeddings)
    if given.get("untie_embeddings_and_output_weights") is tied:
        name = "untie_embeddings_and_output_weights"
        differences.append(Difference(name, tied, not tied, "other model", _ARCHITECTURE))
    return differences
