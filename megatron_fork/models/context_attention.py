"""Exact causal attention over sequences that are sharded over context-parallel ranks, in memory linear in the local length.

Keys and values are sent around the ring of ranks (Liu et al., arXiv 2310.01889); each rank attends its queries to those that
arrive and merges the parts by their log mass. Each sequence is cut into two chunks per rank, and rank r of C holds chunk r and
chunk 2C - 1 - r, in that order. So a rank's queries never need a mask for another rank's keys, only a half: they do not see an
earlier rank's late chunk, and the early ones do not see a later rank's keys at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import LayoutError
from megatron_fork.models.attention_blocks import attend, attend_backward, merge_, wide


@dataclass(frozen=True)
class Run:
    """Consecutive sequences with the same number of local tokens: one kernel call."""

    start: int
    length: int
    count: int

    def of(self, tensor: Tensor) -> Tensor:
        """The run's view `[count, heads, length, ...]` of `[local tokens, heads, ...]`."""
        tokens = tensor[self.start : self.start + self.count * self.length]
        return tokens.unflatten(0, (self.count, self.length)).transpose(1, 2)

    def seen(self, rank: int, owner: int) -> tuple[slice, slice]:
        """Which of this rank's queries see which keys of rank `owner`: each query all of them, except on this rank itself."""
        everything = slice(0, self.length)
        if owner < rank:
            return everything, slice(0, self.length // 2)
        if owner > rank:
            return slice(self.length // 2, self.length), everything
        return everything, everything


def context_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], *, group: Group, scale: float
) -> Tensor:
    """Causal softmax attention within each sequence of a row whose tokens are sharded over `group`.

    Args:
        query: `[local tokens, heads, d]`, this rank's chunks of each sequence, sequences end to end.
        key: `[local tokens, key heads, d]`; `key heads` divides `heads` (grouped queries).
        value: like `key`.
        lengths: of the whole sequences, each a multiple of twice the ranks.
        group: the context-parallel ranks.
        scale: factor of the scores before the softmax.

    Returns:
        `[local tokens, heads, d]` in the dtype of `query`.

    Raises:
        LayoutError: a sequence cannot be cut into two chunks per rank.

    """
    return _RingAttention.apply(query, key, value, runs_of(lengths, collectives.size(group)), group, scale)


def runs_of(lengths: Sequence[int], ranks: int) -> list[Run]:
    """The sequences of a row on one of `ranks` ranks, grouped by equal length; empty ones are left out."""
    runs = []
    start = 0
    for length, equals in groupby(lengths):
        if length % (2 * ranks):
            raise LayoutError(
                f"a packed sequence of {length} tokens is not a multiple of 2 x context={ranks}",
                hint="pad each sequence to a multiple of twice the context-parallel size",
            )
        count = len(list(equals))
        if length:
            runs.append(Run(start, length // ranks, count))
        start += count * (length // ranks)
    return runs


class _RingAttention(torch.autograd.Function):
    """Keeps query, key, value, result and log mass of the local tokens; backward sends keys and values around again."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs: list[Run], group: Group, scale: float
    ) -> Tensor:
        out = torch.zeros(query.shape, dtype=wide(query.dtype), device=query.device)
        log_mass = torch.full(query.shape[:2], -torch.inf, dtype=out.dtype, device=query.device)
        rank = collectives.rank(group)
        for owner, key_value in _around_the_ring(torch.stack((key, value)), group):
            for run in runs:
                queries, keys = run.seen(rank, owner)
                key_r, value_r = (run.of(tensor)[:, :, keys] for tensor in key_value)
                part = attend(run.of(query)[:, :, queries], key_r, value_r, causal=owner == rank, scale=scale)
                merge_(run.of(out)[:, :, queries], run.of(log_mass)[:, :, queries], *part)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, log_mass)
        ctx.runs, ctx.group, ctx.scale = runs, group, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_mass = ctx.saved_tensors
        rank = collectives.rank(ctx.group)
        d_query = torch.zeros_like(query, dtype=log_mass.dtype)
        # The gradients of a rank's keys and values are sent one step behind them, and return after a whole round.
        travelling: collectives.RingExchange | None = None
        for owner, key_value in _around_the_ring(torch.stack((key, value)), ctx.group):
            d_key_value = torch.zeros_like(key_value, dtype=log_mass.dtype)
            for run in ctx.runs:
                queries, keys = run.seen(rank, owner)
                of_queries = (run.of(tensor)[:, :, queries] for tensor in (query, out, log_mass))
                query_r, out_r, log_mass_r = of_queries
                key_r, value_r = (run.of(tensor)[:, :, keys] for tensor in key_value)
                gradients = attend_backward(
                    run.of(grad)[:, :, queries],
                    query_r,
                    key_r,
                    value_r,
                    out_r,
                    log_mass_r,
                    causal=owner == rank,
                    scale=ctx.scale,
                )
                run.of(d_query)[:, :, queries].add_(gradients[0])
                for total, gradient in zip(d_key_value, gradients[1:], strict=True):
                    run.of(total)[:, :, keys].add_(gradient)
            if travelling is not None:
                d_key_value += travelling.wait()
            travelling = collectives.ring_exchange(d_key_value, ctx.group)
        assert travelling is not None, "a group has at least this rank"
        d_key, d_value = travelling.wait().to(key.dtype)
        return d_query.to(query.dtype), d_key, d_value, None, None, None


def _around_the_ring(key_value: Tensor, group: Group) -> Iterator[tuple[int, Tensor]]:
    """Each rank's `key_value` with its owner, this rank's first; the next one is sent while one is being used."""
    ranks = collectives.size(group)
    for step in range(ranks):
        exchange = collectives.ring_exchange(key_value, group) if step + 1 < ranks else None
        yield (collectives.rank(group) - step) % ranks, key_value
        if exchange is not None:
            key_value = exchange.wait()
