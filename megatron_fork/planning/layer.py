"""What one transformer layer keeps for backward, tensor by tensor, and what its backward holds besides.

The terms are the tensors that autograd saves in the layers of `models.build`, each storage counted once:

* Local layers keep what `models.layers` says: a norm its input and a float a row, attention its projection, its result and a
  float a head and token, and the gated MLP its input projection, two widths. What products read besides is computed again, a
  layer at a time; it is kept with `recompute=full`, in the layers that are being recomputed, and with `none` where norms and
  SwiGLU run in torch, as on a CPU.
* Transformer Engine's norm keeps its result as well, its MLP the projection and the product: three widths.
* Attention on a CPU, in float32, and with `compute.attention=sdpa` pads unequal sequences in groups (`models.group_by_length`),
  whose copies it keeps beside. A row whose lengths are not known is taken to be padded as far as a group may be. Other kernels
  take rows as they are.
* Experts have Megatron's own MLPs, and `selective` computes attention again in their layers.

A norm's tensors are whole on every tensor rank, or divided by sequence parallelism; the rest is divided over tensor ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from transformers import PretrainedConfig

from megatron_fork import models
from megatron_fork.distributed import ParallelConfig
from megatron_fork.errors import ConfigError
from megatron_fork.models import ComputeConfig

Backend = Literal["local", "transformer_engine", "either"]
# In a micro-batch; each is counted by itself.
_MOST_SEQUENCES = 1 << 20


@dataclass(frozen=True)
class Machine:
    """What decides which tensors the layers save."""

    backend: Backend = "local"
    """either: not known before the run starts; the larger memory of both counts."""
    on_gpu: bool = True


@dataclass(frozen=True)
class Row:
    """The sequences of a micro-batch, end to end."""

    lengths: tuple[int, ...]
    context: int = 1
    at_worst: bool = False
    """Whether shorter sequences may be in their place: groups are then taken to be padded as far as they may be."""

    @property
    def tokens(self) -> float:
        """Of one context rank."""
        return sum(self.lengths) / self.context

    @property
    def padded(self) -> float:
        """Tokens and padding of the groups of unequal sequences, which local attention copies."""
        if self.at_worst:
            return models.PADDING_LIMIT * self.tokens if self.context == 1 else 0.0
        return float(sum(max(group.lengths) * len(group.lengths) for group in self._groups if _is_uneven(group)))

    @property
    def viewed(self) -> float:
        """Tokens of the groups of equal sequences, which need no copy."""
        if self.context > 1:
            return self.tokens
        return 0.0 if self.at_worst else float(sum(g.tokens for g in self._groups if not _is_uneven(g)))

    @property
    def has_views(self) -> bool:
        """Whether a group needs no copy: its views keep the inputs of the whole row."""
        return self.at_worst or self.viewed > 0

    @property
    def is_joined(self) -> bool:
        """Whether the results of the groups become one tensor, which is another copy."""
        return self.padded > 0 or len(self._groups) > 1

    @property
    def _groups(self) -> list[models.SequenceGroup]:
        return models.group_by_length(list(self.lengths)) if self.context == 1 else []

    @classmethod
    def filled(cls, tokens: int, longest: int, context: int = 1) -> Row:
        """A row of `tokens` tokens in sequences of at most `longest` tokens, or in one sequence that is longer."""
        whole, rest = divmod(max(tokens, longest), longest)
        if whole > _MOST_SEQUENCES:
            raise ConfigError(
                f"a micro-batch of {tokens} tokens has room for {whole} sequences of {longest} tokens",
                hint=f"lower policy.tokens_per_micro_batch and tokens_per_statistics_batch to {_MOST_SEQUENCES} sequences",
            )
        return cls((longest,) * whole + ((rest,) if rest else ()), context, at_worst=longest <= tokens)

    def unpadded(self) -> Row:
        """The same for a kernel that takes all sequences at once."""
        return Row((sum(self.lengths),), self.context)


def _is_uneven(group: models.SequenceGroup) -> bool:
    return len(set(group.lengths)) > 1


@dataclass(frozen=True)
class LayerMemory:
    """Bytes of one layer for a row on one rank."""

    kept: dict[str, float] = field(default_factory=dict)
    """Saved for backward, by part of the layer."""
    backward: float = 0.0
    """More than `kept`, at the point of backward where most is alive."""
    forward: float = 0.0
    """At the point of a forward pass without gradients where most is alive."""
    boundary: float = 0.0
    """The layer's input, which is all that full recomputation keeps, and which pipeline stages exchange."""

    @property
    def saved(self) -> float:
        return sum(self.kept.values())


def layer_memory(
    config: PretrainedConfig,
    parallel: ParallelConfig,
    compute: ComputeConfig,
    machine: Machine,
    row: Row,
    *,
    itemsize: int,
) -> LayerMemory:
    """The tensors of one layer for `row`; `itemsize`: bytes of an activation."""
    if machine.backend == "either":
        backends: tuple[Backend, ...] = ("local", "transformer_engine")
        both = (
            layer_memory(config, parallel, compute, replace(machine, backend=each), row, itemsize=itemsize)
            for each in backends
        )
        return max(both, key=lambda layer: layer.saved + layer.backward)
    fused, family = machine.backend == "transformer_engine", models.family_of(config)
    if fused or (machine.on_gpu and itemsize == 2 and compute.attention != "sdpa"):
        row = row.unpadded()
    widths, tokens = _Widths.of(config, parallel), row.tokens
    in_torch = compute.recompute == "none" and (not machine.on_gpu or compute.elementwise == "torch")
    normed, whole_layers = widths.normed, compute.recompute == "full" or fused or in_torch
    kept = {"norms": 2 * (normed * itemsize + 4) + normed * itemsize * (2 * whole_layers or family.has_experts)}
    if "qk_layernorm" in family.settings:
        kept["query and key norms"] = 4 * (widths.heads + widths.key_heads) + widths.query * itemsize * fused
    kept["projection"] = itemsize * (widths.query + 2 * widths.key)
    selective = compute.recompute == "selective"
    again = selective and (fused or family.has_experts)
    attention = _attention(widths, row, itemsize=itemsize, again=again, inputs=whole_layers)
    dense = "MLP" if not family.has_experts else "experts"
    mlp = _mlp(config, parallel, itemsize=itemsize, widths=3 if whole_layers else 0 if selective else 2)
    kept[dense] = mlp.kept
    boundary = normed * itemsize * tokens
    # Backward of the MLP: what is computed again, the gradients of its tensors and of the residual stream.
    backward = (mlp.backward + 2 * normed * itemsize) * tokens
    forward = (2 * normed * itemsize + mlp.forward) * tokens
    if parallel.sequence:
        gathered = config.hidden_size * itemsize * tokens  # the whole input of a projection
        forward, backward = forward + gathered, backward + gathered
    by_part = {**{name: count * tokens for name, count in kept.items()}, "attention": attention}
    return LayerMemory(by_part, backward, forward, boundary)


@dataclass(frozen=True)
class _Widths:
    """Of a rank's activations."""

    normed: float
    heads: float
    key_heads: float
    query: float
    key: float

    @classmethod
    def of(cls, config: PretrainedConfig, parallel: ParallelConfig) -> _Widths:
        tensor, head = parallel.tensor, models.head_size(config)
        heads, key_heads = config.num_attention_heads / tensor, config.num_key_value_heads / tensor
        normed = config.hidden_size / (tensor if parallel.sequence else 1)
        return cls(normed, heads, key_heads, heads * head, key_heads * head)


def _attention(widths: _Widths, row: Row, *, itemsize: int, again: bool, inputs: bool) -> float:
    """Bytes of a row beside its projection; `again`: all but the result is recomputed, `inputs`: queries and keys are kept."""
    result, turned = itemsize * widths.query, itemsize * (widths.query + widths.key)
    if again:
        return (result + turned * inputs) * row.tokens
    attention = row.viewed * (result + 4 * widths.heads) + turned * row.tokens * (inputs and row.has_views)
    attention += row.padded * (2 * turned + 4 * widths.heads + 8)
    return attention + result * row.tokens * row.is_joined


@dataclass(frozen=True)
class _Mlp:
    """Bytes of a token."""

    kept: float
    backward: float
    """More than `kept`, at the worst point."""
    forward: float


def _mlp(config: PretrainedConfig, parallel: ParallelConfig, *, itemsize: int, widths: int) -> _Mlp:
    """Of the MLP, whose norm is counted elsewhere; `widths`: how many of the product's three inputs a dense one keeps."""
    if not models.family_of(config).has_experts:
        inner = config.intermediate_size / parallel.tensor * itemsize
        # The gradients of three widths, the projection if it is computed again; the product is free by then.
        return _Mlp(widths * inner, (3 + 2 * (widths == 0) - (widths == 3)) * inner, 3 * inner)
    # Tokens come to their experts in copies, `chosen` a token if the router balances them.
    chosen = config.num_experts_per_tok / (parallel.tensor if parallel.sequence else 1) * parallel.expert_tensor
    inner = config.moe_intermediate_size / parallel.expert_tensor
    saved = chosen * (config.hidden_size + 6 * inner) * itemsize + 5 * config.num_experts + 24 * chosen
    return _Mlp(saved, chosen * (2 * config.hidden_size) * itemsize, saved)
