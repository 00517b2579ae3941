"""Attention of some queries to some keys, with the log mass that merges it with attention to other keys.

Softmax over all keys is a mean of the softmaxes over blocks of them, weighted by each block's mass, the sum of its
exponentiated scores (Milakov and Gimelshein, arXiv 1805.02867; Dao, arXiv 2205.14135). Masses are kept as logarithms.

Shapes: query, out and their gradients `[batch, heads, queries, d]`; key and value `[batch, key heads, keys, d]`, where
`key heads` divides `heads`; log mass `[batch, heads, queries]`, float64 for float64, otherwise float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Scores are computed for this many queries and keys at a time.
_BLOCK = 512

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attended values in the dtype of `query`, and log mass. `causal` needs as many queries as keys."""
    if query.device.type == "cpu":
        return _fused(query, key, value, 0.0, causal, scale=scale)
    return attend_in_blocks(query, key, value, causal=causal, scale=scale)


def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_mass: Tensor,
    *,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """This block's part of the gradients of query, key and value.

    `out` and `log_mass` are those of the queries over *all* keys, of which `key` may be a block.
    """
    if query.device.type == "cpu":
        return _fused_backward(grad, query, key, value, out, log_mass, 0.0, causal, scale=scale)
    return attend_backward_in_blocks(grad, query, key, value, out, log_mass, causal=causal, scale=scale)


def merge_(out: Tensor, log_mass: Tensor, part: Tensor, part_log_mass: Tensor) -> None:
    """Merge attention to further keys into `out` and `log_mass`, in place; they start as 0 and minus infinity."""
    total = torch.logaddexp(log_mass, part_log_mass)
    out.mul_((log_mass - total).exp_()[..., None]).add_(part * (part_log_mass - total).exp_()[..., None])
    log_mass.copy_(total)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that parts are summed in."""
    return torch.promote_types(dtype, torch.float32)


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """`attend` in plain torch, for any device; memory beyond the results does not grow with the lengths."""
    out = torch.zeros(query.shape, dtype=wide(query.dtype), device=query.device)
    log_mass = torch.full(query.shape[:-1], -torch.inf, dtype=out.dtype, device=query.device)
    for queries, keys in _blocks(query.shape[2], key.shape[2], causal):
        scores = _scores(query[:, :, queries], key[:, :, keys], scale, causal and queries == keys)
        peak = scores.amax(-1, keepdim=True)
        weights = (scores - peak).exp_()
        mass = weights.sum(-1, keepdim=True)
        part = (weights / mass) @ value[:, :, None, keys].to(out.dtype)
        part_log_mass = (peak + mass.log())[..., 0]
        merge_(out[:, :, queries], log_mass[:, :, queries], part.flatten(1, 2), part_log_mass.flatten(1, 2))
    return out.to(query.dtype), log_mass


def attend_backward_in_blocks(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_mass: Tensor,
    *,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`attend_backward` in plain torch, for any device."""
    dtype, key_heads = log_mass.dtype, key.shape[1]
    d_query, d_key, d_value = (torch.zeros_like(tensor, dtype=dtype) for tensor in (query, key, value))
    for queries, keys in _blocks(query.shape[2], key.shape[2], causal):
        # [batch, key heads, heads of each, queries, ...]
        query_b, grad_b, out_b, log_mass_b = (
            tensor[:, :, queries].unflatten(1, (key_heads, -1)).to(dtype) for tensor in (query, grad, out, log_mass)
        )
        key_b, value_b = (tensor[:, :, None, keys].to(dtype) for tensor in (key, value))
        scores = _scores(query[:, :, queries], key[:, :, keys], scale, causal and queries == keys)
        weights = (scores - log_mass_b[..., None]).exp_()
        along_out = (grad_b * out_b).sum(-1, keepdim=True)
        d_scores = weights * (grad_b @ value_b.mT - along_out) * scale
        d_query[:, :, queries] += (d_scores @ key_b).flatten(1, 2)
        d_key[:, :, keys] += (d_scores.mT @ query_b).sum(2)
        d_value[:, :, keys] += (weights.mT @ grad_b).sum(2)
    return d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype)


def _blocks(queries: int, keys: int, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Pairs of blocks whose queries see the keys, all of them or on the diagonal."""
    for first in range(0, queries, _BLOCK):
        for first_key in range(0, first + 1 if causal else keys, _BLOCK):
            yield (
                slice(first, min(first + _BLOCK, queries)),
                slice(first_key, min(first_key + _BLOCK, keys)),
            )


def _scores(query: Tensor, key: Tensor, scale: float, diagonal: bool) -> Tensor:
    """`[batch, key heads, heads of each, queries, keys]`; on the diagonal, later keys are minus infinity."""
    dtype = wide(query.dtype)
    scores = query.unflatten(1, (key.shape[1], -1)).to(dtype) @ key[:, :, None].to(dtype).mT * scale
    if diagonal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
        scores.masked_fill_(future, -torch.inf)
    return scores
