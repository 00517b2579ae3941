"""Norm and rotation of query and key heads as Triton kernels: see `triton_kernels`."""

# No `from __future__ import annotations`: Triton reads the kernels' annotations, as objects.

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_fork.models.layers.elementwise import HeadNorms

# Tokens of a program: the partial gradients of weights are as many as programs.
_TOKENS = 32


@triton.jit
def _heads_kernel(
    heads_ptr: tl.tensor,
    cosine_ptr: tl.tensor,
    sine_ptr: tl.tensor,
    query_weight_ptr: tl.tensor,
    key_weight_ptr: tl.tensor,
    inverse_ptr: tl.tensor,
    query_ptr: tl.tensor,
    key_ptr: tl.tensor,
    tokens: tl.tensor,
    groups: tl.tensor,
    queries: tl.tensor,
    half: tl.tensor,
    epsilon: tl.tensor,
    NORMS: tl.constexpr,  # noqa: N803
    AGAIN: tl.constexpr,  # noqa: N803
    TOKENS: tl.constexpr,  # noqa: N803
    HALF: tl.constexpr,  # noqa: N803
) -> None:
    # A program turns one head, a query or a key, of some tokens.
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    group = tl.program_id(1) // (queries + 1)
    slot = tl.program_id(1) % (queries + 1)
    is_key = slot == queries
    column = tl.arange(0, HALF)
    held = (token < tokens)[:, None] & (column < half)[None, :]
    head = (token * groups + group) * (queries + 2) + slot
    place = head[:, None] * (2 * half) + column[None, :]
    first = tl.load(heads_ptr + place, mask=held, other=0.0).to(tl.float32)
    second = tl.load(heads_ptr + place + half, mask=held, other=0.0).to(tl.float32)
    if NORMS:
        row = (token * groups + group) * (queries + 1) + slot
        if AGAIN:
            inverse = tl.load(inverse_ptr + row, mask=token < tokens, other=0.0)
        else:
            mean = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * half)
            inverse = tl.rsqrt(mean + epsilon)
            tl.store(inverse_ptr + row, inverse, mask=token < tokens)
        low, high = _weights(query_weight_ptr, key_weight_ptr, is_key, column, half)
        # Rounded as the norm's result is where it is a tensor of its own.
        first = (first * inverse[:, None] * low[None, :]).to(heads_ptr.dtype.element_ty).to(tl.float32)
        second = (second * inverse[:, None] * high[None, :]).to(heads_ptr.dtype.element_ty).to(tl.float32)
    turn = token[:, None] * half + column[None, :]
    cosine = tl.load(cosine_ptr + turn, mask=held, other=0.0).to(tl.float32)
    sine = tl.load(sine_ptr + turn, mask=held, other=0.0).to(tl.float32)
    turned = (first * cosine - second * sine).to(heads_ptr.dtype.element_ty)
    turned_too = (second * cosine + first * sine).to(heads_ptr.dtype.element_ty)
    if is_key:
        goal = key_ptr + (token * groups + group)[:, None] * (2 * half) + column[None, :]
        tl.store(goal, turned, mask=held)
        tl.store(goal + half, turned_too, mask=held)
    else:
        goal = query_ptr + ((token * groups + group) * queries + slot)[:, None] * (2 * half) + column[None, :]
        tl.store(goal, turned, mask=held)
        tl.store(goal + half, turned_too, mask=held)


@triton.jit
def _weights(
    query_weight_ptr: tl.tensor, key_weight_ptr: tl.tensor, is_key: tl.tensor, column: tl.tensor, half: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Both halves of the weight of a query's or a key's norm."""
    # One of the two loads is masked everywhere.
    of_query, of_key = column < tl.where(is_key, 0, half), column < tl.where(is_key, half, 0)
    low = tl.load(query_weight_ptr + column, mask=of_query, other=0.0).to(tl.float32)
    high = tl.load(query_weight_ptr + half + column, mask=of_query, other=0.0).to(tl.float32)
    low += tl.load(key_weight_ptr + column, mask=of_key, other=0.0).to(tl.float32)
    high += tl.load(key_weight_ptr + half + column, mask=of_key, other=0.0).to(tl.float32)
    return low, high


@triton.jit
def _heads_backward_kernel(
    d_query_ptr: tl.tensor,
    d_key_ptr: tl.tensor,
    d_value_ptr: tl.tensor,
    heads_ptr: tl.tensor,
    cosine_ptr: tl.tensor,
    sine_ptr: tl.tensor,
    query_weight_ptr: tl.tensor,
    key_weight_ptr: tl.tensor,
    inverse_ptr: tl.tensor,
    into_ptr: tl.tensor,
    d_weight_ptr: tl.tensor,
    tokens: tl.tensor,
    groups: tl.tensor,
    queries: tl.tensor,
    half: tl.tensor,
    NORMS: tl.constexpr,  # noqa: N803
    TOKENS: tl.constexpr,  # noqa: N803
    HALF: tl.constexpr,  # noqa: N803
) -> None:
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    group = tl.program_id(1) // (queries + 2)
    slot = tl.program_id(1) % (queries + 2)
    column = tl.arange(0, HALF)
    held = (token < tokens)[:, None] & (column < half)[None, :]
    of_group = token * groups + group
    place = (of_group * (queries + 2) + slot)[:, None] * (2 * half) + column[None, :]
    if slot > queries:
        # Values are the projection itself.
        source = of_group[:, None] * (2 * half) + column[None, :]
        tl.store(into_ptr + place, tl.load(d_value_ptr + source, mask=held, other=0.0), mask=held)
        tl.store(into_ptr + place + half, tl.load(d_value_ptr + source + half, mask=held, other=0.0), mask=held)
    else:
        is_key = slot == queries
        key_held = held & (column < tl.where(is_key, half, 0))[None, :]
        query_held = held & (column < tl.where(is_key, 0, half))[None, :]
        of_key = of_group[:, None] * (2 * half) + column[None, :]
        of_query = (of_group * queries + slot)[:, None] * (2 * half) + column[None, :]
        # One of the two is there; the other's places are masked.
        grad = tl.load(d_key_ptr + of_key, mask=key_held, other=0.0).to(tl.float32)
        grad += tl.load(d_query_ptr + of_query, mask=query_held, other=0.0).to(tl.float32)
        grad_too = tl.load(d_key_ptr + of_key + half, mask=key_held, other=0.0).to(tl.float32)
        grad_too += tl.load(d_query_ptr + of_query + half, mask=query_held, other=0.0).to(tl.float32)
        turn = token[:, None] * half + column[None, :]
        cosine = tl.load(cosine_ptr + turn, mask=held, other=0.0).to(tl.float32)
        sine = tl.load(sine_ptr + turn, mask=held, other=0.0).to(tl.float32)
        first = grad * cosine + grad_too * sine
        second = grad_too * cosine - grad * sine
        if NORMS:
            row = of_group * (queries + 1) + slot
            inverse = tl.load(inverse_ptr + row, mask=token < tokens, other=0.0)[:, None]
            low, high = _weights(query_weight_ptr, key_weight_ptr, is_key, column, half)
            normed = tl.load(heads_ptr + place, mask=held, other=0.0).to(tl.float32) * inverse
            normed_too = tl.load(heads_ptr + place + half, mask=held, other=0.0).to(tl.float32) * inverse
            partial = (tl.program_id(0).to(tl.int64) * groups + group) * (queries + 1) + slot
            goal = d_weight_ptr + partial * (2 * half) + column
            tl.store(goal, tl.sum(first * normed, 0), mask=column < half)
            tl.store(goal + half, tl.sum(second * normed_too, 0), mask=column < half)
            first, second = first * low[None, :], second * high[None, :]
            along = (tl.sum(first * normed, 1) + tl.sum(second * normed_too, 1)) / (2 * half)
            first = (first - normed * along[:, None]) * inverse
            second = (second - normed_too * along[:, None]) * inverse
        tl.store(into_ptr + place, first.to(into_ptr.dtype.element_ty), mask=held)
        tl.store(into_ptr + place + half, second.to(into_ptr.dtype.element_ty), mask=held)


def rotate_heads(
    heads_tgsd: Tensor, cosine_th: Tensor, sine_th: Tensor, norms: HeadNorms | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    tokens, groups, slots, width = heads_tgsd.shape
    query = heads_tgsd.new_empty(tokens, groups * (slots - 2), width)
    key = heads_tgsd.new_empty(tokens, groups, width)
    inverse = None if norms is None else heads_tgsd.new_empty(tokens, groups, slots - 1, dtype=torch.float32)
    _turn(heads_tgsd, cosine_th, sine_th, norms, inverse, (query, key), again=False)
    return query, key, inverse


def rotate_heads_again(
    heads_tgsd: Tensor,
    cosine_th: Tensor,
    sine_th: Tensor,
    norms: HeadNorms | None,
    inverse_rms: Tensor | None,
    query: Tensor,
    key: Tensor,
) -> None:
    _turn(heads_tgsd, cosine_th, sine_th, norms, inverse_rms, (query, key), again=True)


def _turn(
    heads_tgsd: Tensor,
    cosine_th: Tensor,
    sine_th: Tensor,
    norms: HeadNorms | None,
    inverse: Tensor | None,
    into: tuple[Tensor, Tensor],
    *,
    again: bool,
) -> None:
    tokens, groups, slots, width = heads_tgsd.shape
    if not tokens:
        return
    half, heads_tgsd = width // 2, heads_tgsd.contiguous()
    # Without norms, pointers that the kernel does not follow.
    weights = (norms.query, norms.key) if norms is not None else (heads_tgsd, heads_tgsd)
    _heads_kernel[(triton.cdiv(tokens, _TOKENS), groups * (slots - 1))](
        heads_tgsd,
        cosine_th,
        sine_th,
        *weights,
        heads_tgsd if inverse is None else inverse,
        *into,
        tokens,
        groups,
        slots - 2,
        half,
        0.0 if norms is None else norms.epsilon,
        NORMS=norms is not None,
        AGAIN=again,
        TOKENS=_TOKENS,
        HALF=triton.next_power_of_2(half),
    )


def rotate_heads_backward(
    grads: tuple[Tensor, Tensor, Tensor],
    heads_tgsd: Tensor,
    cosine_th: Tensor,
    sine_th: Tensor,
    norms: HeadNorms | None,
    inverse_rms: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    tokens, groups, slots, width = heads_tgsd.shape
    half, heads_tgsd = width // 2, heads_tgsd.contiguous()
    result, blocks = torch.empty_like(heads_tgsd), triton.cdiv(tokens, _TOKENS)
    partial = result if norms is None else result.new_zeros(blocks, groups, slots - 1, width, dtype=torch.float32)
    weights = (norms.query, norms.key) if norms is not None else (heads_tgsd, heads_tgsd)
    if tokens:
        _heads_backward_kernel[(blocks, groups * slots)](
            *(grad.contiguous() for grad in grads),
            heads_tgsd,
            cosine_th,
            sine_th,
            *weights,
            heads_tgsd if inverse_rms is None else inverse_rms,
            result,
            partial,
            tokens,
            groups,
            slots - 2,
            half,
            NORMS=norms is not None,
            TOKENS=_TOKENS,
            HALF=triton.next_power_of_2(half),
        )
    if norms is None:
        return result, None, None
    d_weight = partial.sum((0, 1))
    return result, d_weight[:-1].sum(0).to(norms.query.dtype), d_weight[-1].to(norms.key.dtype)
