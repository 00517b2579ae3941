"""RMS norms and SwiGLU as Triton kernels: see `triton_kernels`."""

# No `from __future__ import annotations`: Triton reads the kernels' annotations, as objects.

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns of a program of the kernels of SwiGLU.
_COLUMNS = 1024
# Programs of the norm's backward for each multiprocessor.
_PROGRAMS = 4


@triton.jit
def _norm_kernel(
    rows_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    inverse_ptr: tl.tensor,
    into_ptr: tl.tensor,
    epsilon: tl.tensor,
    width: tl.tensor,
    AGAIN: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    held = column < width
    x = tl.load(rows_ptr + row * width + column, mask=held, other=0.0).to(tl.float32)
    if AGAIN:
        inverse = tl.load(inverse_ptr + row)
    else:
        inverse = tl.rsqrt(tl.sum(x * x, 0) / width + epsilon)
        tl.store(inverse_ptr + row, inverse)
    weight = tl.load(weight_ptr + column, mask=held, other=0.0).to(tl.float32)
    tl.store(into_ptr + row * width + column, (x * inverse * weight).to(into_ptr.dtype.element_ty), mask=held)


@triton.jit
def _norm_backward_kernel(
    grad_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    inverse_ptr: tl.tensor,
    d_rows_ptr: tl.tensor,
    d_weight_ptr: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:
    column = tl.arange(0, BLOCK)
    held = column < width
    weight = tl.load(weight_ptr + column, mask=held, other=0.0).to(tl.float32)
    d_weight = tl.zeros([BLOCK], tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        place = tl.cast(row, tl.int64) * width + column
        inverse = tl.load(inverse_ptr + row)
        normed = tl.load(rows_ptr + place, mask=held, other=0.0).to(tl.float32) * inverse
        grad = tl.load(grad_ptr + place, mask=held, other=0.0).to(tl.float32)
        d_weight += grad * normed
        d_normed = grad * weight
        along = tl.sum(d_normed * normed, 0) / width
        d_rows = (d_normed - normed * along) * inverse
        tl.store(d_rows_ptr + place, d_rows.to(d_rows_ptr.dtype.element_ty), mask=held)
    tl.store(d_weight_ptr + tl.program_id(0) * width + column, d_weight, mask=held)


@triton.jit
def _swiglu_kernel(gate_up_ptr: tl.tensor, into_ptr: tl.tensor, width: tl.tensor, BLOCK: tl.constexpr) -> None:  # noqa: N803
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    held = column < width
    gate = tl.load(gate_up_ptr + row * 2 * width + column, mask=held, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * width + width + column, mask=held, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    tl.store(into_ptr + row * width + column, result.to(into_ptr.dtype.element_ty), mask=held)


@triton.jit
def _swiglu_backward_kernel(
    grad_ptr: tl.tensor,
    gate_up_ptr: tl.tensor,
    into_ptr: tl.tensor,
    width: tl.tensor,
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    held = column < width
    place = row * 2 * width + column
    gate = tl.load(gate_up_ptr + place, mask=held, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + place + width, mask=held, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * width + column, mask=held, other=0.0).to(tl.float32)
    open_part = tl.sigmoid(gate)
    d_gate = grad * up * open_part * (1.0 + gate * (1.0 - open_part))
    tl.store(into_ptr + place, d_gate.to(into_ptr.dtype.element_ty), mask=held)
    tl.store(into_ptr + place + width, (grad * gate * open_part).to(into_ptr.dtype.element_ty), mask=held)


def rms_norm(rows: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    rows = rows.contiguous()
    result, inverse = torch.empty_like(rows), rows.new_empty(rows.shape[:-1], dtype=torch.float32)
    _normalise(rows, weight, inverse, result, epsilon, again=False)
    return result, inverse


def rms_norm_again(rows: Tensor, weight: Tensor, inverse_rms: Tensor, into: Tensor) -> None:
    _normalise(rows.contiguous(), weight, inverse_rms, into, 0.0, again=True)


def _normalise(rows: Tensor, weight: Tensor, inverse: Tensor, into: Tensor, epsilon: float, *, again: bool) -> None:
    width = rows.shape[-1]
    block = triton.next_power_of_2(width)
    if inverse.numel():
        _norm_kernel[(inverse.numel(),)](
            rows, weight, inverse, into, epsilon, width, AGAIN=again, BLOCK=block, num_warps=_warps(block)
        )


def _warps(block: int) -> int:
    """So that a thread has 8 to 16 numbers of a row."""
    return min(max(block // 512, 1), 16)


def rms_norm_backward(grad: Tensor, rows: Tensor, weight: Tensor, inverse_rms: Tensor) -> tuple[Tensor, Tensor]:
    grad, rows, width, count = grad.contiguous(), rows.contiguous(), rows.shape[-1], inverse_rms.numel()
    programs = min(count, _PROGRAMS * _multiprocessors(rows))
    result, block = torch.empty_like(rows), triton.next_power_of_2(width)
    partial = rows.new_zeros(programs, width, dtype=torch.float32)
    if count:
        _norm_backward_kernel[(programs,)](
            grad, rows, weight, inverse_rms, result, partial, count, width, BLOCK=block, num_warps=_warps(block)
        )
    return result, partial.sum(0).to(weight.dtype)


def _multiprocessors(tensor: Tensor) -> int:
    """Of its GPU; Triton's interpreter has one."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1


def swiglu(gate_up: Tensor) -> Tensor:
    result = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
    swiglu_again(gate_up, result)
    return result


def swiglu_again(gate_up: Tensor, into: Tensor) -> None:
    width, gate_up = into.shape[-1], gate_up.contiguous()
    if into.numel():
        grid = into.numel() // width, triton.cdiv(width, _COLUMNS)
        _swiglu_kernel[grid](gate_up, into, width, BLOCK=_COLUMNS)


def swiglu_backward(grad: Tensor, gate_up: Tensor) -> Tensor:
    grad, gate_up = grad.contiguous(), gate_up.contiguous()
    result, width = torch.empty_like(gate_up), grad.shape[-1]
    if grad.numel():
        grid = grad.numel() // width, triton.cdiv(width, _COLUMNS)
        _swiglu_backward_kernel[grid](grad, gate_up, result, width, BLOCK=_COLUMNS)
    return result
