"""Statistics and gradient of a CUDA tile of logits as two Triton kernels: one read each, and the gradient's one write.

Design note, for a tile of T tokens and V columns of b bytes each:

                  moves                                   for V = 151,936 in bf16    instructions per column
    sweep         reads T V b, writes 16 T V / 16,384     304 kB per token           11 to 16
    gradient      reads T V b, writes T V b               608 kB per token           15 to 19; 17 to 24 with the entropy's

Instructions are counted in the compiled code (Triton 3.9, sm_80 and sm_90); nothing here is timed. While memory delivers one
bf16 column, an H200 can issue 14 instructions, an A100 19, an H100 20; twice that if a column is also written. So the sweep is
near the balance, and the work for every column is kept short: one exponential, to the base of 2; no mask and no bounds check
except in a row's last block; factors multiplied together once per program.

Fused into the sweep: widening to float32, temperature, maximum, both sums (rescaled when the running maximum grows), and the
target's logit as one more load per token. Fused into the gradient: softmax, target, temperature, the entropy's part (compiled
out if it is not needed) and the rounding to the dtype of the result, optionally in place.

Not fused:

*  The LM head's product. It would save writing the tile to memory and reading it, about a tenth of the product's time at a
   width of 4,096, but would replace cuBLAS by a product written here.
*  The gradient into the sweep: it needs log Z over all ranks, and the loss's gradients.
*  The merge of a row's splits, a few dozen floats per token: in torch.

A row is split into programs of `SPLIT_COLUMNS` columns: 100 tokens of the whole vocabulary make 1,000 programs, some 7 for each
SM of an H100. The width does not depend on the number of tokens, so that a token's statistics have the same bits in every
chunk. Their last bits do depend on the tuned block size; the choice is therefore kept on disk, in Triton's cache.

They depend as well on how far apart the rows stand. Where pointer and row stride are multiples of 16, Triton lets a thread load
8 bfloat16 or 4 float32 neighbours at a time, otherwise one; a thread's columns are added up before those of several threads. So
what is promised is the same bits for the same row stride, whatever lies between the rows, and whichever rows are handed over
together. Another stride may change the last bits of s and u, by float32's rounding. The LM head aligns its rows to 64.
"""

# No `from __future__ import annotations`: Triton reads the kernels' annotations, as objects.

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Triton's interpreter cannot time configurations: it gets a single one, with blocks as small as its tests' rows.
_INTERPRETED = triton.knobs.runtime.interpret
_LARGEST_BLOCK = 256 if _INTERPRETED else 8192

# A multiple of every block size: only the end of a row ends within a block.
SPLIT_COLUMNS = 2 * _LARGEST_BLOCK

# Narrower tiles are tuned as one: each choice to be made takes a second of a run's start.
_LEAST_BUCKET = 8192

# e^-1e4 is 0 in float32, and 0 * -1e4 is 0, while 0 * -inf would be NaN: exact for columns at -inf.
_LOWEST_EXPONENT = -1e4
_LOWEST = tl.constexpr(_LOWEST_EXPONENT)

# `exp2` compiles to one instruction, `exp` to five: it flushes values below 2^-126, which do not change a sum that has a 1.
_LN_2 = tl.constexpr(math.log(2))
_DOUBLINGS = tl.constexpr(1 / math.log(2))


def _configurations(*choices: tuple[int, ...]) -> list[Any]:
    """From (block size, warps[, stages]): 8 to 32 columns per thread, without spills; three stages load two blocks ahead."""
    if _INTERPRETED:
        choices = ((_LARGEST_BLOCK, *choices[0][1:]),)
    names = ("BLOCK", "STAGES")
    return [
        triton.Config(dict(zip(names, (block, *stages), strict=False)), num_warps=warps)
        for block, warps, *stages in choices
    ]


@triton.jit
def _absorb(
    logits: tl.tensor, doublings: tl.tensor, maximum: tl.tensor, total: tl.tensor, weighted: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The unscaled maximum, s and u / ln 2 of the columns so far and of one more block; a logit is so many `doublings`."""
    larger = tl.maximum(maximum, tl.max(logits, 0))
    # As long as every column is at -inf, so is the maximum; 0 in its place leaves the differences at -inf, not NaN.
    base = tl.where(larger == -float("inf"), 0.0, larger)
    # Difference first, factor second: exact at the maximum, whether or not the compiler contracts multiply and add.
    # The maximum of two lets NaN through, unlike that of the row: a NaN column makes s NaN.
    exponent = tl.maximum((logits - base) * doublings, _LOWEST, propagate_nan=tl.PropagateNan.ALL)
    weight = tl.exp2(exponent)
    shift = tl.maximum((maximum - base) * doublings, _LOWEST, propagate_nan=tl.PropagateNan.ALL)
    rescale = tl.exp2(shift)
    weighted = rescale * (weighted + shift * total) + tl.sum(weight * exponent, 0)
    total = rescale * total + tl.sum(weight, 0)
    return larger, total, weighted


# `columns_bucket` is only used as the key. Partials are written, never added to, so tuning does not change them.
@triton.autotune(
    configs=_configurations((2048, 4, 1), (2048, 4, 3), (4096, 4, 1), (4096, 8, 3), (8192, 8, 1), (8192, 16, 1)),
    key=["columns_bucket"],
    cache_results=True,
)
@triton.jit
def _sweep_kernel(
    logits_ptr: tl.tensor,
    row_stride: tl.tensor,
    own_column_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    inverse_temperature: tl.tensor,
    doublings: tl.tensor,
    columns: tl.tensor,
    columns_bucket: tl.tensor,
    SPLIT: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    STAGES: tl.constexpr,  # noqa: N803
) -> None:
    token = tl.program_id(0)
    split = tl.program_id(1)
    # 64 bits: 14,135 rows of the whole vocabulary hold more than 2^31 logits.
    row_ptr = logits_ptr + token.to(tl.int64) * row_stride
    start = split * SPLIT
    end = tl.minimum(start + SPLIT, columns)
    end_of_whole_blocks = start + (end - start) // BLOCK * BLOCK
    place = tl.arange(0, BLOCK)
    maximum = tl.full((), -float("inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    weighted = tl.full((), 0.0, tl.float32)
    for first in tl.range(start, end_of_whole_blocks, BLOCK, num_stages=STAGES):
        logits = tl.load(row_ptr + first + place).to(tl.float32)
        maximum, total, weighted = _absorb(logits, doublings, maximum, total, weighted)
    if end_of_whole_blocks < end:
        column = end_of_whole_blocks + place
        logits = tl.load(row_ptr + column, mask=column < end, other=-float("inf")).to(tl.float32)
        maximum, total, weighted = _absorb(logits, doublings, maximum, total, weighted)
    # The partials are [4, splits, tokens].
    row = tl.num_programs(1) * tl.num_programs(0)
    partial_ptr += split * tl.num_programs(0) + token
    tl.store(partial_ptr, maximum * inverse_temperature)
    tl.store(partial_ptr + row, total)
    tl.store(partial_ptr + 2 * row, weighted * _LN_2)
    if split == 0:
        own_column = tl.load(own_column_ptr + token)
        own = tl.load(row_ptr + own_column, mask=own_column >= 0, other=0.0).to(tl.float32)
        tl.store(partial_ptr + 3 * row, own * inverse_temperature)


def sweep(
    logits_tv: Tensor,
    column_t: Tensor,
    held_t: Tensor,
    inverse_temperature: float,
    reference_t: Tensor | None = None,
) -> Tensor:
    """`[4, tokens]` of m, s, u and the target's logit, float32, from unscaled logits, which are only read.

    Args:
        logits_tv: `[tokens, columns]` bf16, fp16 or fp32; columns contiguous, rows with any stride.
        column_t: the target's column; any column if this rank does not hold the target.
        held_t: whether this rank holds the target.
        inverse_temperature: above 0.
        reference_t: not used here, since the maximum needs no extra read.

    """
    tokens, columns = logits_tv.shape
    if tokens == 0 or columns == 0:
        nothing_4t = torch.zeros(4, tokens, dtype=torch.float32, device=logits_tv.device)
        nothing_4t[0] = -torch.inf
        return nothing_4t
    splits = triton.cdiv(columns, SPLIT_COLUMNS)
    partial_4st = torch.empty(4, splits, tokens, dtype=torch.float32, device=logits_tv.device)
    _sweep_kernel[(tokens, splits)](
        logits_tv,
        logits_tv.stride(0),
        _own_column(column_t, held_t),
        partial_4st,
        inverse_temperature,
        inverse_temperature / math.log(2),
        columns,
        max(_LEAST_BUCKET, triton.next_power_of_2(columns)),
        SPLIT=SPLIT_COLUMNS,
    )
    return partial_4st[:, 0] if splits == 1 else _merge_splits(partial_4st)


def _merge_splits(partial_4st: Tensor) -> Tensor:
    maximum_st, sum_st, weighted_st, target_st = partial_4st
    maximum_t = maximum_st.amax(0)
    base_t = maximum_t.masked_fill(maximum_t == -torch.inf, 0.0)
    distance_st = (maximum_st - base_t).clamp(min=_LOWEST_EXPONENT)
    share_st = distance_st.exp()
    sum_t = (share_st * sum_st).sum(0)
    weighted_t = (share_st * (weighted_st + distance_st * sum_st)).sum(0)
    # Only the first split reads the target's logit, wherever in the row it is.
    return torch.stack([maximum_t, sum_t, weighted_t, target_st[0]])


def _own_column(column_t: Tensor, held_t: Tensor) -> Tensor:
    return torch.where(held_t, column_t, -1)


# Tuning runs the kernel many times on the caller's tensors. In place, the second run would read the first one's gradient as
# logits: hence `restore_value`, which restores the tile after every run. It holds a copy of the tile during the first call for
# a width, and costs every configuration the same time. Tuning on a scratch would hold as much and need more code here.
@triton.autotune(
    configs=_configurations((1024, 4), (2048, 4), (2048, 8), (4096, 8), (8192, 8), (8192, 16)),
    key=["columns_bucket", "WITH_ENTROPY"],
    restore_value=["out_ptr"],
    cache_results=True,
)
@triton.jit
def _gradient_kernel(
    logits_ptr: tl.tensor,
    row_stride: tl.tensor,
    own_column_ptr: tl.tensor,
    log_z_ptr: tl.tensor,
    entropy_ptr: tl.tensor,
    logprob_gradient_ptr: tl.tensor,
    entropy_gradient_ptr: tl.tensor,
    inverse_temperature: tl.tensor,
    out_ptr: tl.tensor,
    out_row_stride: tl.tensor,
    columns: tl.tensor,
    columns_bucket: tl.tensor,
    WITH_ENTROPY: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:
    token = tl.program_id(0)
    first = tl.program_id(1) * BLOCK
    column = first + tl.arange(0, BLOCK)
    logits_ptr += token.to(tl.int64) * row_stride
    out_ptr += token.to(tl.int64) * out_row_stride
    own_column = tl.load(own_column_ptr + token).to(tl.int32)
    # Float32 whatever the upstream gradients are: a float64 scalar would take every column along.
    log_z = tl.load(log_z_ptr + token).to(tl.float32)
    logprob_gradient = tl.load(logprob_gradient_ptr + token).to(tl.float32) * inverse_temperature
    whole = first + BLOCK <= columns
    if whole:
        logits = tl.load(logits_ptr + column).to(tl.float32)
    else:
        logits = tl.load(logits_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
    log_p = tl.maximum(logits * inverse_temperature - log_z, _LOWEST, propagate_nan=tl.PropagateNan.ALL)
    factor = logprob_gradient
    if WITH_ENTROPY:
        entropy = tl.load(entropy_ptr + token).to(tl.float32)
        entropy_gradient = tl.load(entropy_gradient_ptr + token).to(tl.float32) * inverse_temperature
        factor += entropy_gradient * (log_p + entropy)
    gradient = tl.where(column == own_column, logprob_gradient, 0.0) - tl.exp2(log_p * _DOUBLINGS) * factor
    if whole:
        tl.store(out_ptr + column, gradient)
    else:
        tl.store(out_ptr + column, gradient, mask=column < columns)


def logits_gradient(
    logits_tv: Tensor,
    column_t: Tensor,
    held_t: Tensor,
    log_z_t: Tensor,
    entropy_t: Tensor,
    logprob_gradient_t: Tensor,
    entropy_gradient_t: Tensor | None,
    inverse_temperature: float,
    out_tv: Tensor,
) -> Tensor:
    """Gradient of the unscaled logits, written into `out_tv` and returned.

    Args:
        logits_tv: as in `sweep`.
        column_t: as in `sweep`.
        held_t: as in `sweep`.
        log_z_t: over the whole vocabulary, of the logits divided by the temperature.
        entropy_t: likewise.
        logprob_gradient_t: upstream.
        entropy_gradient_t: upstream; None if there is none.
        inverse_temperature: as in `sweep`.
        out_tv: `[tokens, columns]`, any float dtype: `logits_tv` itself, or memory that does not overlap it.

    """
    tokens, columns = logits_tv.shape
    if tokens == 0 or columns == 0:
        return out_tv

    def grid(choice: dict[str, Any]) -> tuple[int, int]:
        return tokens, triton.cdiv(columns, choice["BLOCK"])

    # The backward of a sum gives an expanded tensor of one number; the kernel needs contiguous memory.
    _gradient_kernel[grid](
        logits_tv,
        logits_tv.stride(0),
        _own_column(column_t, held_t),
        log_z_t.contiguous(),
        entropy_t.contiguous(),
        logprob_gradient_t.contiguous(),
        None if entropy_gradient_t is None else entropy_gradient_t.contiguous(),
        inverse_temperature,
        out_tv,
        out_tv.stride(0),
        columns,
        max(_LEAST_BUCKET, triton.next_power_of_2(columns)),
        WITH_ENTROPY=entropy_gradient_t is not None,
    )
    return out_tv
