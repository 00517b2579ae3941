"""Self-attention over packed rows, which keeps one projection and attention's result."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core.models.common.embeddings.yarn_rotary_pos_embedding import (
    _yarn_get_concentration_factor_from_config as attention_factor,
)
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_fork.distributed import collectives
from megatron_fork.models.layers.config import LayerConfig
from megatron_fork.models.layers.elementwise import Elementwise, HeadNorms
from megatron_fork.models.layers.kernels import elementwise_for
from megatron_fork.models.layers.norm import RMSNorm
from megatron_fork.models.layers.packed_row import PackedRow
from megatron_fork.models.layers.rebuilding import forget_results


class PackedSelfAttention(SelfAttention):
    """Megatron's modules and parameters, run in one piece from the projection to attention; see `layers` for what it keeps.

    Rows that are not packed go Megatron's own way, one operation after the other.
    """

    config: LayerConfig

    def __init__(self, config: LayerConfig, *place: Any, **rest: Any) -> None:
        super().__init__(config, *place, **rest)
        self.kernels = elementwise_for(config.elementwise_kernels)
        self.rotation_scale = float(attention_factor(config))

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *further: Any,
        rotary_pos_emb: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **rest: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """`[tokens (/tp), 1, n]` like its input, a norm's result, and Megatron's bias to be added."""
        if packed_seq_params is None or rotary_pos_emb is None:
            result: tuple[Tensor, Tensor | None] = super().forward(
                hidden_states,
                attention_mask,
                *further,
                rotary_pos_emb=rotary_pos_emb,
                packed_seq_params=packed_seq_params,
                **rest,
            )
            return result
        group = self.pg_collection.cp
        row = PackedRow.completed(packed_seq_params, collectives.rank(group), collectives.size(group))
        projected, _ = self.linear_qkv(hidden_states)
        turns = row.rotation(rotary_pos_emb, self.rotation_scale, projected.dtype)
        width = self.hidden_size_per_attention_head
        heads_tgsd = projected.view(len(projected), self.num_query_groups_per_partition, -1, width)
        query, key, value = _Heads.apply(heads_tgsd, *turns, *self._norms(), self.kernels)
        attended = self._attend(query, key, value, row)
        output, bias = self.linear_proj(attended[:, None])
        if not self.config.keeps_products_inputs:
            if self.recomputes_attention or self.core_attention.keeps(row):
                forget_results([query, key], until=attended)
            forget_results([hidden_states], until=projected)
        return output, bias

    @property
    def recomputes_attention(self) -> bool:
        return bool(self.checkpoint_core_attention and self.training)

    def _norms(self) -> tuple[Tensor | None, Tensor | None, float]:
        if not isinstance(self.q_layernorm, RMSNorm):
            return None, None, 0.0
        return self.q_layernorm.weight, self.k_layernorm.weight, self.q_layernorm.eps

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, row: PackedRow) -> Tensor:
        if self.recomputes_attention:
            attended: Tensor = self._checkpointed_attention_forward(query, key, value, None, packed_seq_params=row)
        else:
            attended = self.core_attention(query, key, value, None, packed_seq_params=row)
        return attended


class _Heads(torch.autograd.Function):
    """Queries, keys and values `[tokens, heads, d]` of one projection; the values are a view of it."""

    @staticmethod
    def forward(
        ctx: Any,
        heads_tgsd: Tensor,
        cosine_th: Tensor,
        sine_th: Tensor,
        query_weight: Tensor | None,
        key_weight: Tensor | None,
        epsilon: float,
        kernels: Elementwise,
    ) -> tuple[Tensor, Tensor, Tensor]:
        norms = _head_norms(query_weight, key_weight, epsilon)
        query, key, inverse_rms = kernels.rotate_heads(heads_tgsd, cosine_th, sine_th, norms)
        ctx.save_for_backward(heads_tgsd, cosine_th, sine_th, query_weight, key_weight, inverse_rms)
        ctx.epsilon, ctx.kernels, ctx.again = epsilon, kernels, partial(_again, kernels, epsilon)
        return query, key, heads_tgsd[:, :, -1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        heads_tgsd, cosine_th, sine_th, query_weight, key_weight, inverse_rms = ctx.saved_tensors
        norms = _head_norms(query_weight, key_weight, ctx.epsilon)
        found = ctx.kernels.rotate_heads_backward(grads, heads_tgsd, cosine_th, sine_th, norms, inverse_rms)
        return found[0], None, None, found[1], found[2], None, None


def _head_norms(query: Tensor | None, key: Tensor | None, epsilon: float) -> HeadNorms | None:
    return None if query is None or key is None else HeadNorms(query, key, epsilon)


def _again(kernels: Elementwise, epsilon: float, saved: tuple[Any, ...], results: tuple[Tensor, Tensor]) -> None:
    heads_tgsd, cosine_th, sine_th, query_weight, key_weight, inverse_rms = saved
    norms = _head_norms(query_weight, key_weight, epsilon)
    kernels.rotate_heads_again(heads_tgsd, cosine_th, sine_th, norms, inverse_rms, *results)
