"""What one transformer layer keeps for backward, tensor by tensor, and what its backward holds besides.

The terms are the tensors that autograd saves in the layers of `models.build`, each storage counted once:

* Local layers on a CPU have the composite RMSNorm of torch, which saves its input and the normalised input in float32; on a GPU
  it is one kernel, which saves its input and a float per row.
* Local layers split the projection of queries, keys and values. Queries become a copy; values stay a view that keeps it all.
* The local gated MLP saves its input projection (two widths), both factors and their product: five widths. Transformer Engine's
  kernel saves the projection and the product: three.
* Attention (`_scaled_dot_product_flash_attention`) saves queries, keys, values, the result and a float a head and token; the
  ring of context parallelism saves the same. Sequences of unequal length are padded in groups: see `models.group_by_length`.
  A row whose lengths are not known is taken to be padded as far as a group may be.

A norm's tensors are whole on every tensor rank, or divided by sequence parallelism; the rest is divided over tensor ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from transformers import PretrainedConfig

from megatron_fork import models
from megatron_fork.distributed import ParallelConfig
from megatron_fork.errors import ConfigError
from megatron_fork.models import ComputeConfig

Backend = Literal["local", "transformer_engine"]
# In a micro-batch; each is counted by itself.
_MOST_SEQUENCES = 1 << 20


@dataclass(frozen=True)
class Machine:
    """What decides which tensors the layers save."""

    backend: Backend = "local"
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
    tokens, tensor = row.tokens, parallel.tensor
    hidden, head = config.hidden_size, models.head_size(config)
    heads, key_heads = config.num_attention_heads / tensor, config.num_key_value_heads / tensor
    query, key = heads * head, key_heads * head
    normed = hidden / tensor if parallel.sequence else float(hidden)
    fused, gpu, family = machine.backend == "transformer_engine", machine.on_gpu, models.family_of(config)

    # Bytes of a token.
    kept = {"norms": 2 * _norm(normed, 1, itemsize, gpu) + 2 * normed * itemsize}
    projection = itemsize * (query + 2 * key)
    keeps_projection = False
    if "qk_layernorm" in family.settings:
        keeps_projection = gpu or itemsize == 4
        # The float32 copies of a CPU's norm replace the projection's own parts, which only float32 itself shares.
        kept["query and key norms"] = (
            query * itemsize + 4 * (heads + key_heads)
            if gpu
            else (8 * query + 4 * key + (4 * key if itemsize < 4 else 0)) + 4 * (heads + key_heads)
        )
    kept["rotary"] = 0.0 if fused else 4.0 * head * itemsize
    inputs = projection + itemsize * (query + key)
    if fused or compute.recompute == "selective":
        attention = (inputs + itemsize * query + 4 * heads * (compute.recompute != "selective")) * tokens
    else:
        attention = (inputs if row.has_views else projection * keeps_projection) * tokens
        attention += row.viewed * (itemsize * query + 4 * heads)
        attention += row.padded * (itemsize * (2 * query + 2 * key) + 4 * heads + 8)
        attention += itemsize * query * tokens * row.is_joined
    dense_backward, mlp = _mlp(config, parallel, fused=fused, has_experts=family.has_experts, itemsize=itemsize)
    kept["experts" if family.has_experts else "MLP"] = mlp
    boundary = normed * itemsize * tokens
    # Backward of the MLP's product: gradients of both factors, of the residual stream, and the layer's recomputed result.
    backward = (dense_backward + 2 * normed * itemsize) * tokens
    if parallel.sequence:
        backward += hidden * itemsize * tokens  # the gathered input of a projection
    by_part = {**{name: count * tokens for name, count in kept.items()}, "attention": attention}
    forward = (2 * normed * itemsize + mlp) * tokens + (hidden * itemsize * tokens if parallel.sequence else 0.0)
    return LayerMemory(by_part, backward, forward, boundary)


def _norm(width: float, rows: float, itemsize: int, on_gpu: bool) -> float:
    """Saved by an RMS norm of `width` numbers, without its result: its input, and a float a row."""
    return (width * itemsize if on_gpu else 8 * width) + 4 * rows


def _mlp(
    config: PretrainedConfig, parallel: ParallelConfig, *, fused: bool, has_experts: bool, itemsize: int
) -> tuple[float, float]:
    """(more at the worst point of backward, saved) bytes of a token; the norm's result is counted elsewhere."""
    if not has_experts:
        inner = config.intermediate_size / parallel.tensor
        return 2 * inner * itemsize, (3 if fused else 5) * inner * itemsize
    # Tokens come to their experts in copies, `chosen` a token if the router balances them.
    chosen = config.num_experts_per_tok / (parallel.tensor if parallel.sequence else 1) * parallel.expert_tensor
    inner = config.moe_intermediate_size / parallel.expert_tensor
    saved = chosen * (config.hidden_size + 6 * inner) * itemsize + 5 * config.num_experts + 24 * chosen
    return chosen * (2 * config.hidden_size) * itemsize, saved
