"""Causal attention over packed sequences, which Megatron's local attention refuses.

On a GPU one kernel call attends within all sequences of a row (`attention_kernels`). Elsewhere, and as the reference of those,
torch's scaled-dot-product kernels do: the sequences of a micro-batch are grouped by similar length, and a group becomes one
padded batch and one call. Causality makes right padding exact (a padded key comes after every true query), and the padding of
a group is bounded, so that a 29,696-token sequence next to a 10-token one costs no more than the two apart. Torch's kernel
never holds more than a tile of scores, so memory is linear in the length.

Over context-parallel ranks, keys and values are sent around the ring: see `context_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.models.attention_kernels import ONE_CALL
from megatron_fork.models.context_attention import context_attention
from megatron_fork.models.grouping import group_by_length
from megatron_fork.models.layers.config import LayerConfig
from megatron_fork.models.layers.packed_row import PackedRow


class PackedAttention(MegatronModule):
    """Drop-in `core_attention`: query `[tokens, heads, d]` packed, or `[sequence, batch, heads, d]`.

    With context parallelism these are the rank's chunks of each sequence; cumulative lengths are those of the whole row.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        softmax_scale: float | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.context = pg_collection.cp if pg_collection is not None else None
        self.softmax_scale = softmax_scale
        self.kernel = ONE_CALL.get(config.attention_kernel) if isinstance(config, LayerConfig) else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attended values: `[tokens, heads x d]` packed, else `[sequence, batch, heads x d]`."""
        group = self.context
        row = packed_seq_params and PackedRow.completed(
            packed_seq_params, collectives.rank(group), collectives.size(group)
        )
        if collectives.size(group) > 1:
            return self._attend_on_the_ring(query, key, value, row)
        if row is None:
            batched = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
            return self._attend(*batched).permute(2, 0, 1, 3).flatten(2)
        if self.kernel is not None:
            return self.kernel.attend(query, key, value, row, self.softmax_scale).flatten(1)
        parts = []
        for each in group_by_length(row.lengths):
            tokens = slice(each.start, each.start + each.tokens)
            parts.append(self._attend_group(query[tokens], key[tokens], value[tokens], each.lengths))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(1)

    def keeps(self, row: PackedRow) -> bool:
        """Whether queries and keys themselves are kept for backward, and not only the copies of padded groups."""
        if self.kernel is not None or collectives.size(self.context) > 1:
            return True
        return any(len(set(group.lengths)) == 1 for group in group_by_length(row.lengths))

    def _attend_on_the_ring(self, query: Tensor, key: Tensor, value: Tensor, row: PackedRow | None) -> Tensor:
        scale = query.shape[-1] ** -0.5 if self.softmax_scale is None else self.softmax_scale
        if row is not None:
            return context_attention(query, key, value, row.lengths, group=self.context, scale=scale).flatten(1)
        sequence, batch = query.shape[:2]
        lengths = [sequence * collectives.size(self.context)] * batch
        query, key, value = (tensor.transpose(0, 1).flatten(0, 1) for tensor in (query, key, value))
        attended = context_attention(query, key, value, lengths, group=self.context, scale=scale)
        return attended.unflatten(0, (batch, sequence)).transpose(0, 1).flatten(2)

    def _attend_group(self, query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...]) -> Tensor:
        longest = max(lengths)
        if longest * len(lengths) == query.shape[0]:
            shape = (len(lengths), longest)
            batched = (tensor.unflatten(0, shape).transpose(1, 2) for tensor in (query, key, value))
            return self._attend(*batched).transpose(1, 2).flatten(0, 1)
        length_s = torch.tensor(lengths, device=query.device)
        place_sl = torch.arange(longest, device=query.device)
        first_s = length_s.cumsum(0) - length_s
        # Padding repeats the last token of the row: any finite value is good enough there.
        index_sl = (first_s[:, None] + place_sl).clamp_(max=query.shape[0] - 1)
        padded = (
            tensor.index_select(0, index_sl.flatten()).unflatten(0, index_sl.shape).transpose(1, 2)
            for tensor in (query, key, value)
        )
        attended = self._attend(*padded).transpose(1, 2).flatten(0, 1)
        true_places = (place_sl < length_s[:, None]).flatten().nonzero()[:, 0]
        return attended.index_select(0, true_places)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`[batch, heads, sequence, d]`, causal; key and value may have fewer heads (grouped queries)."""
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.softmax_scale, enable_gqa=query.shape[1] != key.shape[1]
        )

    def sharded_state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Nothing to save: attention has no parameters."""
        return {}
