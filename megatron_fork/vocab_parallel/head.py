"""This rank's columns of the LM head, and the shapes in which a device works on them.

Design note. A CPU multiplies 1,024 tokens with 2,048 rows of the weight at full speed, and such a tile of logits is
still in cache when it is swept; half-precision operands are widened a tile at a time, as a CPU either rounds their
product or has no instructions for it, and so that every CPU computes the same. A GPU wants tiles of a gigaflop and
more, whose blocks fill its processors many times over: up to 32,768 columns wide, in two buffers, so that one is swept
while the next is computed (`overlap`). Its products run in the model's dtype and store float32 (`products`); with
`fp32_head` the operands are widened there too. Column tiles are the outer loop: the weight is read once, and a tile's
part of d_weight is complete when the loop leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_fork.vocab_parallel.overlap import Lane, SameLane
from megatron_fork.vocab_parallel.products import add_product, multiply, tensor_float32
from megatron_fork.vocab_parallel.shard import VocabularyShard, combine
from megatron_fork.vocab_parallel.tile import Scratch, TileKernels, accumulation_dtype

_CPU_TOKENS = 1024
_CPU_COLUMNS = 2048
_GPU_COLUMNS = 32_768
# The least that still fills a GPU with thousands of rows; also the widest tile of the weight that is widened.
_GPU_LEAST_COLUMNS = 8192
# Elements, of which rows of logits on a GPU start at a multiple.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Head:
    """This rank's columns of the LM head, with the padding left out."""

    weight_vd: Tensor
    shard: VocabularyShard
    inverse_temperature: float
    kernels: TileKernels
    on_gpu: bool
    product_dtype: torch.dtype
    lane: Lane = field(default_factory=SameLane)
    scratch: Scratch = field(default_factory=Scratch)

    @property
    def sum_dtype(self) -> torch.dtype:
        return accumulation_dtype(self.weight_vd.dtype)

    @property
    def widens(self) -> bool:
        """Whether the products' operands are copies of half-precision tensors."""
        return self.product_dtype != self.weight_vd.dtype

    @property
    def buffers(self) -> int:
        """Tiles of logits that exist at a time where none is kept: a GPU sweeps one while it computes the other."""
        return 2 if self.on_gpu else 1

    def column_tiles(self, columns: int) -> Iterator[slice]:
        """The shard's columns in tiles of that many."""
        return (
            slice(start, min(start + columns, self.shard.columns)) for start in range(0, self.shard.columns, columns)
        )

    def tile_shape(self, tokens: int, chunk_bytes: int) -> tuple[int, int]:
        """(tokens, columns) of a tile if tiles are processed one after the other and none is kept."""
        if not self.on_gpu:
            return _CPU_TOKENS, _CPU_COLUMNS
        logits = chunk_bytes // (4 * self.buffers)
        columns = logits // max(1, tokens) // _GPU_LEAST_COLUMNS * _GPU_LEAST_COLUMNS
        columns = max(_GPU_LEAST_COLUMNS, min(columns, self.kept_columns(tokens)))
        return max(1, logits // columns), columns

    def kept_columns(self, tokens: int) -> int:
        """Columns of a tile if all tiles of a chunk of `tokens` are kept: with fewer tokens a CPU's tile has more."""
        if self.on_gpu:
            return _GPU_LEAST_COLUMNS if self.widens else _GPU_COLUMNS
        return _CPU_COLUMNS if self.widens else _CPU_COLUMNS * max(1, min(4, _CPU_TOKENS // max(1, tokens)))

    def row_tokens(self, chunk_bytes: int) -> int:
        """Tokens whose logits over all columns of the shard fit `chunk_bytes`."""
        return max(16, chunk_bytes // (4 * max(1, self.shard.columns)))

    def memory(self, name: str, tokens: int, columns: int, dtype: torch.dtype) -> Tensor:
        """`[tokens, columns]` of scratch for logits; on a GPU every row starts where cuBLAS and vector loads ask for it."""
        pitch = -(-columns // _ALIGNMENT) * _ALIGNMENT if self.on_gpu else columns
        return self.scratch.take(name, (tokens, pitch), dtype, self.weight_vd.device)[:, :columns]

    def operand(self, tensor: Tensor, name: str) -> Tensor:
        """`tensor` in the dtype of the products; if it must be widened, the last operand of that name is overwritten."""
        if tensor.dtype == self.product_dtype:
            return tensor
        return self.scratch.take(name, tensor.shape, self.product_dtype, tensor.device).copy_(tensor)

    def multiply(self, left: Tensor, right: Tensor, out: Tensor) -> Tensor:
        with tensor_float32(self.on_gpu and self.widens):
            return multiply(left, right, out)

    def add_product(self, total: Tensor, left: Tensor, right: Tensor) -> Tensor:
        with tensor_float32(self.on_gpu and self.widens):
            return add_product(total, left, right)

    def sweep(self, logits_ck: Tensor, targets_c: Tensor, columns: slice, seen_c: Tensor | None = None) -> Tensor:
        """`[4, tokens]` of a tile; `seen_c`: the maximum of columns before it."""
        column_c, held_c = self.shard.locate(targets_c, columns.start, columns.stop - columns.start)
        return self.kernels.sweep(logits_ck, column_c, held_c, self.inverse_temperature, seen_c)

    def gradient(
        self, logits_ck: Tensor, targets_c: Tensor, columns: slice, coefficients: Coefficients, out_ck: Tensor
    ) -> Tensor:
        """Gradient of a tile's logits, written to `out_ck`: the logits themselves, or memory that does not overlap them."""
        column_c, held_c = self.shard.locate(targets_c, columns.start, columns.stop - columns.start)
        each = coefficients
        return self.kernels.logits_gradient(
            logits_ck,
            column_c,
            held_c,
            each.log_z,
            each.entropy,
            each.of_logprob,
            each.of_entropy,
            self.inverse_temperature,
            out_ck,
        )


@dataclass(frozen=True)
class Coefficients:
    """What the gradient of a row's logits is made of, each `[tokens]`."""

    log_z: Tensor  # of the whole vocabulary
    entropy: Tensor
    of_logprob: Tensor  # upstream gradient
    of_entropy: Tensor | None  # None: no gradient

    def __getitem__(self, rows: slice) -> Coefficients:
        of_entropy = None if self.of_entropy is None else self.of_entropy[rows]
        return Coefficients(self.log_z[rows], self.entropy[rows], self.of_logprob[rows], of_entropy)

    def times(self, upstream: Tensor) -> Coefficients:
        """With the gradient of what is computed from the rows' loss."""
        of_entropy = None if self.of_entropy is None else self.of_entropy * upstream
        return Coefficients(self.log_z, self.entropy, self.of_logprob * upstream, of_entropy)

    @classmethod
    def joined(cls, parts: list[Coefficients]) -> Coefficients:
        """Of the rows of all parts, in order."""
        of_entropy = None
        if any(part.of_entropy is not None for part in parts):
            of_entropy = torch.cat(
                [torch.zeros_like(part.entropy) if part.of_entropy is None else part.of_entropy for part in parts]
            )
        return cls(
            torch.cat([part.log_z for part in parts]),
            torch.cat([part.entropy for part in parts]),
            torch.cat([part.of_logprob for part in parts]),
            of_entropy,
        )


class Sums:
    """The four numbers of some tokens over tiles of columns, which are added in the order of the columns."""

    def __init__(self, head: Head, tokens: int) -> None:
        self._head, self._tokens = head, tokens
        self._so_far: Tensor | None = None
        self._parts: list[Callable[[], Tensor]] = []

    def add(self, logits_ck: Tensor, targets_c: Tensor, columns: slice) -> Callable[[], Tensor]:
        """Start to sweep a tile; the answer waits until its logits have been read."""
        if self._head.on_gpu:
            # A GPU would run a dozen small operations after every tile to combine it: that is done once, at the end.
            part = self._head.lane.start(lambda: self._head.sweep(logits_ck, targets_c, columns))
            self._parts.append(part)
            return part
        before = self._so_far
        swept_4c = self._head.sweep(logits_ck, targets_c, columns, None if before is None else before[0])
        so_far = self._so_far = swept_4c if before is None else combine(torch.stack([before, swept_4c]))
        return lambda: so_far

    def total(self) -> Tensor:
        """`[4, tokens]` of all tiles."""
        parts = [part() for part in self._parts] if self._so_far is None else [self._so_far]
        if not parts:
            nothing_4t = self._head.weight_vd.new_zeros(4, self._tokens, dtype=self._head.sum_dtype)
            nothing_4t[0] = torch.finfo(self._head.sum_dtype).min
            return nothing_4t
        return combine(torch.stack(parts)) if len(parts) > 1 else parts[0]
