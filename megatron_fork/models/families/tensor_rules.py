"""How one Megatron parameter is made of Hugging Face tensors, and how it is sharded over the tensor ranks.

A rule is a pair of inverse functions between the Hugging Face tensors and one Megatron shard per tensor rank. Everything is a
view or a concatenation, so that a round trip is exact bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig


class Rule:
    """Replicated: one Hugging Face tensor, the same on every tensor rank."""

    def shards(self, tensors: Sequence[Tensor], ranks: int, config: PretrainedConfig) -> list[Tensor]:
        """One Megatron shard per tensor rank, from the Hugging Face tensors."""
        return [tensors[0]] * ranks

    def join(self, shards: Sequence[Tensor], config: PretrainedConfig) -> list[Tensor]:
        """The Hugging Face tensors from every tensor rank's shard."""
        return [shards[0]]


@dataclass(frozen=True)
class Split(Rule):
    """One tensor split along `dimension`: 0 for column-parallel weights, 1 for row-parallel ones."""

    dimension: int

    def shards(self, tensors: Sequence[Tensor], ranks: int, config: PretrainedConfig) -> list[Tensor]:
        return list(tensors[0].chunk(ranks, self.dimension))

    def join(self, shards: Sequence[Tensor], config: PretrainedConfig) -> list[Tensor]:
        return [torch.cat(list(shards), self.dimension)]


class Vocabulary(Rule):
    """Rows of the vocabulary, padded with zeros to a multiple of the ranks."""

    def shards(self, tensors: Sequence[Tensor], ranks: int, config: PretrainedConfig) -> list[Tensor]:
        rows = -(-config.vocab_size // ranks)
        if rows * ranks == config.vocab_size:
            return list(tensors[0].split(rows))
        padding = tensors[0].new_zeros(rows * ranks - config.vocab_size, *tensors[0].shape[1:])
        return list(torch.cat([tensors[0], padding]).split(rows))

    def join(self, shards: Sequence[Tensor], config: PretrainedConfig) -> list[Tensor]:
        whole = (
            shards[0] if len(shards) == 1 else torch.cat(list(shards))
        )  # the largest tensor: without a copy where it can be
        return [whole[: config.vocab_size]]


class GatedProjection(Rule):
    """Gate and up projection, each split over the ranks, stacked within a rank."""

    def shards(self, tensors: Sequence[Tensor], ranks: int, config: PretrainedConfig) -> list[Tensor]:
        return [torch.cat(pair) for pair in zip(*(tensor.chunk(ranks) for tensor in tensors), strict=True)]

    def join(self, shards: Sequence[Tensor], config: PretrainedConfig) -> list[Tensor]:
        gates, ups = zip(*(shard.chunk(2) for shard in shards), strict=True)
        return [torch.cat(gates), torch.cat(ups)]


class QueryKeyValue(Rule):
    """Query, key and value heads, interleaved by query group: each group's queries, then its key, then its value.

    For weights `[heads x d, hidden]` and biases `[heads x d]`.
    """

    def shards(self, tensors: Sequence[Tensor], ranks: int, config: PretrainedConfig) -> list[Tensor]:
        groups = config.num_key_value_heads
        by_group = [tensor.unflatten(0, (groups, -1)) for tensor in tensors]
        return list(torch.cat(by_group, dim=1).flatten(0, 1).chunk(ranks))

    def join(self, shards: Sequence[Tensor], config: PretrainedConfig) -> list[Tensor]:
        groups = config.num_key_value_heads
        queries = config.num_attention_heads // groups
        by_group = torch.cat(list(shards)).unflatten(0, (groups, -1))
        head = by_group.shape[1] // (queries + 2)
        parts = by_group.split([queries * head, head, head], dim=1)
        return [part.flatten(0, 1) for part in parts]
