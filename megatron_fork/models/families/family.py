"""What a model family is: settings of Megatron, the values of fields that are supported, and its tensors' names.

All families have RMSNorm before attention and MLP, grouped-query attention, SwiGLU, and rotary positions. Names are those of
the whole model in published and Megatron checkpoints: layers and experts are numbered over all pipeline stages and expert
ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from megatron_fork.models.families.tensor_rules import GatedProjection, QueryKeyValue, Rule, Split, Vocabulary


@dataclass(frozen=True)
class Entry:
    """One Megatron parameter and the Hugging Face tensors that it is made of."""

    megatron: str
    hugging_face: tuple[str, ...]
    rule: Rule
    expert: int | None = None
    """Number of the expert, if it is an expert's tensor: one expert rank holds it, sharded over the experts' tensor group."""

    def at(self, layer: int, expert: int | None = None) -> Entry:
        place = {"layer": layer, "expert": expert}
        names = tuple(name.format(**place) for name in self.hugging_face)
        return Entry(self.megatron.format(**place), names, self.rule, expert)


@dataclass(frozen=True)
class Family:
    """What distinguishes one family."""

    layer: tuple[Entry, ...]
    """A layer's parameters, except its experts'."""
    expert: tuple[Entry, ...] = ()
    """The parameters of each expert of a layer; empty in a dense model."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Megatron's settings in addition to those that all families share."""
    required: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Fields of the Hugging Face config: the supported value, and the hint for any other."""

    @property
    def has_experts(self) -> bool:
        return bool(self.expert)

    def layer_entries(self, layer: int, experts: int) -> Iterator[Entry]:
        """The parameters of layer number `layer`."""
        yield from (entry.at(layer) for entry in self.layer)
        for expert in range(experts):
            yield from (entry.at(layer, expert) for entry in self.expert)


_OURS, _THEIRS = "decoder.layers.{layer}.", "model.layers.{layer}."
_ATTENTION = f"{_THEIRS}self_attn."
EMBEDDING = Entry("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Vocabulary())
LM_HEAD = Entry("output_layer.weight", ("lm_head.weight",), Vocabulary())
FINAL_NORM = Entry("decoder.final_layernorm.weight", ("model.norm.weight",), Rule())


def query_key_value(kind: str) -> Entry:
    """The weights, or the biases, of the projections of queries, keys and values."""
    return Entry(
        f"{_OURS}self_attention.linear_qkv.{kind}",
        tuple(f"{_ATTENTION}{part}_proj.{kind}" for part in "qkv"),
        QueryKeyValue(),
    )


def _gated_mlp(ours: str, theirs: str) -> tuple[Entry, Entry]:
    return (
        Entry(f"{ours}linear_fc1.weight", (f"{theirs}gate_proj.weight", f"{theirs}up_proj.weight"), GatedProjection()),
        Entry(f"{ours}linear_fc2.weight", (f"{theirs}down_proj.weight",), Split(1)),
    )


BLOCK = (
    Entry(f"{_OURS}input_layernorm.weight", (f"{_THEIRS}input_layernorm.weight",), Rule()),
    query_key_value("weight"),
    Entry(f"{_OURS}self_attention.linear_proj.weight", (f"{_ATTENTION}o_proj.weight",), Split(1)),
    Entry(f"{_OURS}pre_mlp_layernorm.weight", (f"{_THEIRS}post_attention_layernorm.weight",), Rule()),
)
QUERY_KEY_NORM = tuple(
    Entry(f"{_OURS}self_attention.{part}_layernorm.weight", (f"{_ATTENTION}{part}_norm.weight",), Rule())
    for part in "qk"
)
DENSE_MLP = _gated_mlp(f"{_OURS}mlp.", f"{_THEIRS}mlp.")
ROUTER = (Entry(f"{_OURS}mlp.router.weight", (f"{_THEIRS}mlp.gate.weight",), Rule()),)
EXPERT_MLP = _gated_mlp(f"{_OURS}mlp.experts.local_experts.{{expert}}.", f"{_THEIRS}mlp.experts.{{expert}}.")

SILU = {"hidden_act": ("silu", "use a model with silu")}
NO_BIAS = {"attention_bias": (False, "use a model without biases")}
FULL_ATTENTION = {"use_sliding_window": (False, "use a model with full attention")}
