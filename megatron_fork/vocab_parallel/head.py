"""The LM head a tile at a time: `[tokens, columns]` of logits, and the gradients of hidden states and weight from theirs.

Design note. A product of 1,024 tokens with 2,048 rows of the weight is large enough for a CPU's matrix library to run at full
speed and small enough that the tile is still in cache when it is swept; on a GPU the tile is 16,384 columns wide. Column tiles
are the outer loop: the weight is read once, and a tile's part of d_weight is complete when the loop leaves it. Products run in
the model's dtype and sum in float32 (`out_dtype` on a GPU). A CPU either rounds a product of half-precision operands or has no
instructions for it and is slow: there the operands of one tile are widened instead, and every CPU computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_fork.vocab_parallel.shard import VocabularyShard, combine
from megatron_fork.vocab_parallel.tile import Scratch, TileKernels, accumulation_dtype

_CPU_TOKENS = 1024
_CPU_COLUMNS = 2048
_GPU_COLUMNS = 16384


def _widened_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which products of `tensor` run."""
    return accumulation_dtype(tensor.dtype) if tensor.device.type == "cpu" else tensor.dtype


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right`, summed and returned in float32 (float64 for float64)."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    return torch.mm(left, right, out_dtype=torch.float32)


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """Add `left @ right` to `total`, or overwrite it if it is the first, so that new memory is touched only once."""
    if total.dtype != left.dtype:
        total.copy_(_product(left, right)) if first else total.add_(_product(left, right))
    elif first:
        torch.mm(left, right, out=total)
    else:
        total.addmm_(left, right)


@dataclass(frozen=True)
class Head:
    """This rank's columns of the LM head, with the padding left out."""

    weight_vd: Tensor
    shard: VocabularyShard
    inverse_temperature: float
    kernels: TileKernels
    scratch: Scratch = field(default_factory=Scratch)

    @property
    def product_dtype(self) -> torch.dtype:
        return _widened_dtype(self.weight_vd)

    @property
    def sum_dtype(self) -> torch.dtype:
        return accumulation_dtype(self.weight_vd.dtype)

    def column_tiles(self, tokens: int = _CPU_TOKENS) -> Iterator[slice]:
        """Columns of the tiles for chunks of at most `tokens`: with fewer tokens a CPU's tile has more columns."""
        columns = _GPU_COLUMNS if self.weight_vd.is_cuda else _CPU_COLUMNS
        if not self.weight_vd.is_cuda and self.weight_vd.dtype == self.product_dtype:
            columns *= max(1, min(4, _CPU_TOKENS // max(1, tokens)))
        return (
            slice(start, min(start + columns, self.shard.columns)) for start in range(0, self.shard.columns, columns)
        )

    def tile_tokens(self, chunk_bytes: int) -> int:
        """Tokens of a tile if tiles are processed one after the other and none is kept."""
        if self.weight_vd.is_cuda:
            return max(1, chunk_bytes // (4 * _GPU_COLUMNS))
        return _CPU_TOKENS

    def row_tokens(self, chunk_bytes: int) -> int:
        """Tokens whose logits over all columns of the shard fit `chunk_bytes`."""
        return max(16, chunk_bytes // (4 * max(1, self.shard.columns)))

    def operand(self, tensor: Tensor, name: str) -> Tensor:
        """`tensor` in the dtype of the products; if it must be widened, the last operand of that name is overwritten."""
        if tensor.dtype == self.product_dtype:
            return tensor
        return self.scratch.take(name, tensor.shape, self.product_dtype, tensor.device).copy_(tensor)

    def logits(self, hidden_cd: Tensor, weight_kd: Tensor, out_ck: Tensor | None = None) -> Tensor:
        """`[tokens, columns]` in the dtype of the sums; without `out_ck` the last result is overwritten."""
        if hidden_cd.dtype != self.sum_dtype:
            return _product(hidden_cd, weight_kd.T)
        if out_ck is None:
            shape = (hidden_cd.shape[0], weight_kd.shape[0])
            out_ck = self.scratch.take("logits", shape, self.sum_dtype, hidden_cd.device)
        return torch.mm(hidden_cd, weight_kd.T, out=out_ck)

    def no_columns(self, tokens: int) -> Tensor:
        """The four numbers for no columns, `[4, tokens]`."""
        partial_4t = self.weight_vd.new_zeros(4, tokens, dtype=self.sum_dtype)
        partial_4t[0] = torch.finfo(self.sum_dtype).min
        return partial_4t

    def extended(self, partial_4c: Tensor, logits_ck: Tensor, targets_c: Tensor, columns: slice) -> Tensor:
        """The four numbers for the columns so far together with this tile's."""
        column_c, held_c = self.shard.locate(targets_c, columns.start, columns.stop - columns.start)
        seen = partial_4c[0] if columns.start else None
        swept_4c = self.kernels.sweep(logits_ck, column_c, held_c, self.inverse_temperature, seen)
        return combine(torch.stack([partial_4c, swept_4c])) if columns.start else swept_4c

    def add_gradients(
        self,
        logits_ck: Tensor,
        targets_c: Tensor,
        columns: slice,
        statistics_3c: tuple[Tensor, Tensor, Tensor | None],
        log_z_c: Tensor,
        hidden_cd: Tensor,
        weight_kd: Tensor,
        d_hidden_cd: Tensor,
        d_weight_kd: Tensor | None,
        *,
        first: bool,
    ) -> None:
        """Turn the tile's logits into their gradient, and add its products to `d_hidden_cd` and `d_weight_kd`.

        Args:
            logits_ck: overwritten.
            targets_c: global ids.
            columns: the tile's place in the shard.
            statistics_3c: entropy, and the upstream gradients of log-prob and of entropy (None: no gradient).
            log_z_c: of the whole vocabulary.
            hidden_cd: operand, like `weight_kd`.
            weight_kd: the tile's rows of the weight.
            d_hidden_cd: in the dtype of the sums, like `d_weight_kd`.
            d_weight_kd: None if the weight needs no gradient.
            first: nothing has been added to `d_weight_kd` yet; its content is overwritten.

        """
        column_c, held_c = self.shard.locate(targets_c, columns.start, columns.stop - columns.start)
        entropy_c, of_logprob_c, of_entropy_c = statistics_3c
        same = logits_ck.dtype == self.product_dtype
        gradient_ck = self.kernels.logits_gradient(
            logits_ck,
            column_c,
            held_c,
            log_z_c,
            entropy_c,
            of_logprob_c,
            of_entropy_c,
            self.inverse_temperature,
            logits_ck if same else torch.empty_like(logits_ck, dtype=self.product_dtype),
        )
        _add_product(d_hidden_cd, gradient_ck, weight_kd, first=False)
        if d_weight_kd is not None:
            _add_product(d_weight_kd, gradient_ck.T, hidden_cd, first=first)
