"""Where d_weight is summed: Megatron's buffer, or the tensor that autograd gets.

Design note. d_weight of a vocabulary of 152k is the largest tensor of the update: 2.5 GB in float32 at a width of
4,096, as much traffic for every sweep as the logits of 4,096 rows. A tile of it is therefore only ever the target of a
product: of the first, which overwrites it, or of a later one, which adds to it in place. If a single product makes it,
that rounds to half precision itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_fork.vocab_parallel.head import Head


class WeightGradient:
    """d_weight of one head, formed a tile of columns at a time.

    Args:
        head: whose gradient it is.
        weight_vd: the whole weight of this rank, padding included.
        buffer_vd: Megatron's gradient, to which d_weight is added; None: a tensor of its own.
        sum_vd: in the dtype of the sums, where d_weight is to stand without a buffer.
        is_new: `sum_vd` holds nothing yet, and is overwritten.

    """

    def __init__(
        self,
        head: Head,
        weight_vd: Tensor,
        buffer_vd: Tensor | None,
        sum_vd: Tensor | None = None,
        *,
        is_new: bool = False,
    ) -> None:
        self._head, self._weight_vd, self._is_buffer = head, weight_vd, buffer_vd is not None
        self._is_new = buffer_vd is None and (sum_vd is None or is_new)
        given_vd = sum_vd if buffer_vd is None else buffer_vd
        if given_vd is None:
            given_vd = torch.empty_like(weight_vd, memory_format=torch.contiguous_format)
            given_vd[head.shard.columns :] = 0.0  # padding has no gradient
        self._total_vd = given_vd

    def zero(self) -> None:
        """For no rows: nothing is added."""
        if self._is_new:
            self._total_vd.zero_()

    def tile(self, columns: slice, products: int) -> TileSum:
        """The sum of these columns' `products`."""
        return TileSum(self._head, self._total_vd[columns], products, is_new=self._is_new)

    def for_autograd(self) -> Tensor:
        """The gradient in the weight's dtype; if the buffer has it, one zero, of which autograd makes a tensor of zeros."""
        if self._is_buffer:
            return self._weight_vd.new_zeros(()).expand(self._weight_vd.shape)
        return self._total_vd.to(self._weight_vd.dtype)


class TileSum:
    """The sum of some products in a tile of d_weight: where it stands, if that does not round it more than once."""

    def __init__(self, head: Head, place_kd: Tensor, products: int, *, is_new: bool) -> None:
        self._head, self._place_kd, self._is_new = head, place_kd, is_new
        rounds_once = is_new and products == 1 and place_kd.dtype == head.product_dtype
        self._sum_kd = place_kd
        if place_kd.dtype != head.sum_dtype and not rounds_once:
            self._sum_kd = head.scratch.take("d_weight", place_kd.shape, head.sum_dtype, place_kd.device)
        self._overwrites = is_new or self._sum_kd is not place_kd

    def add(self, gradient_ck: Tensor, hidden_cd: Tensor) -> None:
        """Add `gradient^T hidden`; both operands of the head's products."""
        if self._overwrites:
            self._head.multiply(gradient_ck.T, hidden_cd, self._sum_kd)
        else:
            self._head.add_product(self._sum_kd, gradient_ck.T, hidden_cd)
        self._overwrites = False

    def finish(self) -> None:
        """Round the sum to where it belongs, if it stands elsewhere."""
        if self._sum_kd is self._place_kd:
            return
        if self._is_new:
            self._place_kd.copy_(self._sum_kd)
        else:
            self._place_kd.add_(self._sum_kd)
