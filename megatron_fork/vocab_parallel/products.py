"""Matrix products whose sum is wider than their operands: written, or added, where the sum stands.

Design note. A product of bfloat16 operands is exact in float32, and a GPU's matrix units add up in float32; what rounds
is the store. cuBLAS can store float32 (C and D of that type), and add to what is there (beta = 1): one read and one
write of the sum inside the product, instead of a product in memory of its own, a read of it, and a read and a write of
the sum. torch has it as `mm` and `addmm` with `out_dtype`, on CUDA alone; `addmm` takes a float32 sum since torch 2.11.
Elsewhere the operands are widened, which computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def multiply(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Overwrite `out` with `left @ right`: its memory may be new, and is touched once.

    Args:
        left: `[m, k]`.
        right: `[k, n]`, of the same dtype.
        out: `[m, n]`, rows with any stride: of that dtype (rounded once, after the sum), or float32 beside half precision.

    """
    if out.dtype == left.dtype:
        return torch.mm(left, right, out=out)
    if left.is_cuda:
        return torch.ops.aten.mm.dtype_out(left, right, out.dtype, out=out)
    return out.copy_(left.to(out.dtype) @ right.to(out.dtype))


def add_product(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add `left @ right` to `total`, in one pass over it; shapes and dtypes as in `multiply`."""
    if total.dtype == left.dtype:
        return total.addmm_(left, right)
    if left.is_cuda:
        # The sum and the result must be one and the same tensor, or torch copies the first into the second.
        return torch.ops.aten.addmm.dtype_out(total, left, right, total.dtype, beta=1, alpha=1, out=total)
    return total.addmm_(left.to(total.dtype), right.to(total.dtype))


@contextmanager
def tensor_float32(allowed: bool) -> Iterator[None]:
    """Let float32 products of a GPU run on its matrix units, which see 11 bits of an operand; bfloat16 has 8."""
    before = torch.backends.cuda.matmul.allow_tf32
    if allowed:
        torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        if allowed:
            torch.backends.cuda.matmul.allow_tf32 = before
