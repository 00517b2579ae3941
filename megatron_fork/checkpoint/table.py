"""Which Hugging Face tensors each Megatron parameter is made of: one table of a layer per model family.

Names are those of the published checkpoints, on both sides of the whole model: layers and experts count from 0 over all
pipeline stages and expert ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PretrainedConfig

from megatron_fork.checkpoint.layouts import GatedProjection, QueryKeyValue, Rule, Split, Vocabulary
from megatron_fork.models import PackedModel, ValueModel


@dataclass(frozen=True)
class Entry:
    """One Megatron parameter and the Hugging Face tensors that it is made of."""

    megatron: str
    hugging_face: tuple[str, ...]
    rule: Rule
    expert: int | None = None
    """Set for an expert's own tensor: one expert rank holds it, cut over the experts' own tensor group."""

    def at(self, layer: int, expert: int | None = None) -> Entry:
        place = {"layer": layer, "expert": expert}
        names = tuple(name.format(**place) for name in self.hugging_face)
        return Entry(self.megatron.format(**place), names, self.rule, expert)


@dataclass(frozen=True)
class Layer:
    """A layer's parameters: its own, and those of each of its experts."""

    own: tuple[Entry, ...]
    of_expert: tuple[Entry, ...] = ()

    def at(self, layer: int, experts: int) -> Iterator[Entry]:
        yield from (entry.at(layer) for entry in self.own)
        for expert in range(experts):
            yield from (entry.at(layer, expert) for entry in self.of_expert)


_OURS, _THEIRS = "decoder.layers.{layer}.", "model.layers.{layer}."
_ATTENTION = f"{_THEIRS}self_attn."
EMBEDDING = Entry("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), Vocabulary())
LM_HEAD = Entry("output_layer.weight", ("lm_head.weight",), Vocabulary())
_FINAL_NORM = Entry("decoder.final_layernorm.weight", ("model.norm.weight",), Rule())


def _query_key_value(kind: str) -> Entry:
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


_BLOCK = (
    Entry(f"{_OURS}input_layernorm.weight", (f"{_THEIRS}input_layernorm.weight",), Rule()),
    _query_key_value("weight"),
    Entry(f"{_OURS}self_attention.linear_proj.weight", (f"{_ATTENTION}o_proj.weight",), Split(1)),
    Entry(f"{_OURS}pre_mlp_layernorm.weight", (f"{_THEIRS}post_attention_layernorm.weight",), Rule()),
)
_QUERY_KEY_NORM = tuple(
    Entry(f"{_OURS}self_attention.{part}_layernorm.weight", (f"{_ATTENTION}{part}_norm.weight",), Rule())
    for part in "qk"
)
_DENSE = _gated_mlp(f"{_OURS}mlp.", f"{_THEIRS}mlp.")
_ROUTER = (Entry(f"{_OURS}mlp.router.weight", (f"{_THEIRS}mlp.gate.weight",), Rule()),)
_EXPERT = _gated_mlp(f"{_OURS}mlp.experts.local_experts.{{expert}}.", f"{_THEIRS}mlp.experts.{{expert}}.")

LAYERS = {
    "LlamaForCausalLM": Layer(_BLOCK + _DENSE),
    "Qwen2ForCausalLM": Layer((*_BLOCK, _query_key_value("bias"), *_DENSE)),
    "Qwen3ForCausalLM": Layer(_BLOCK + _QUERY_KEY_NORM + _DENSE),
    "Qwen3MoeForCausalLM": Layer(_BLOCK + _QUERY_KEY_NORM + _ROUTER, _EXPERT),
}


def backbone_entries(config: PretrainedConfig) -> Iterator[Entry]:
    """Every parameter of the whole model up to the final norm, layer by layer."""
    table = LAYERS[config.architectures[0]]
    experts = config.num_experts if table.of_expert else 0
    yield EMBEDDING
    for layer in range(config.num_hidden_layers):
        yield from table.at(layer, experts)
    yield _FINAL_NORM


def model_entries(config: PretrainedConfig) -> list[Entry]:
    """Every parameter of a language model that a published checkpoint has: a tied one has no LM head."""
    return [*backbone_entries(config), *([] if config.tie_word_embeddings else [LM_HEAD])]


def entries_of(model: PackedModel) -> list[Entry]:
    """Every parameter of `model`, over all ranks, that a published checkpoint has: a critic has no LM head either."""
    config = model.hf_config
    return list(backbone_entries(config)) if isinstance(model, ValueModel) else model_entries(config)
