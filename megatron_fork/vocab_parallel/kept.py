"""The logits of a chunk of rows over all the shard's columns, and their gradient in the same memory.

Design note. A CPU keeps one tile after the other, each contiguous, and a gradient overwrites its logits. On a GPU the
tiles are columns of one matrix of float32. Where the products take half precision, the gradient of a row needs half of
that row's memory: it is written from the left, over logits whose gradients are done. Columns a to b of it, 2 bytes
each, cover the float32 columns a/2 to b/2. All of those lie before a, and so are done, if b <= 2 a: pieces that double,
of which only the first, of 1,024 columns, goes by another place. The gradient is thus written once, in the dtype of the
products, and needs no memory; a row of it is as far from the next as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from megatron_fork.vocab_parallel.head import Coefficients, Head, Sums

_FIRST_COLUMNS = 1024


class KeptLogits:
    """Computes a chunk's logits, then turns each tile into its gradient; there is one such chunk of a head at a time.

    Args:
        head: whose scratch holds the logits.
        hidden_cd: the chunk's hidden states, as operand.
        targets_c: int64 `[tokens]`, global ids.

    """

    def __init__(self, head: Head, hidden_cd: Tensor, targets_c: Tensor) -> None:
        self.head, self._targets_c = head, targets_c
        tokens = hidden_cd.shape[0]
        self.tiles = list(head.column_tiles(head.kept_columns(tokens)))
        self._whole_cv = head.memory("all logits", tokens, head.shard.columns, head.sum_dtype)
        if head.on_gpu:
            self._logits = [self._whole_cv[:, tile] for tile in self.tiles]
        else:
            memory = self._whole_cv.view(-1)
            self._logits = [
                memory[tokens * tile.start : tokens * tile.stop].view(tokens, tile.stop - tile.start)
                for tile in self.tiles
            ]
        sums = Sums(head, tokens)
        for tile, logits_ck in zip(self.tiles, self._logits, strict=True):
            head.multiply(hidden_cd, head.operand(head.weight_vd[tile], "weight").T, logits_ck)
            sums.add(logits_ck, targets_c, tile)
        self.partial_4c = sums.total()

    def gradients(self, coefficients: Coefficients) -> Iterator[tuple[slice, Tensor]]:
        """(tile, gradient `[tokens, columns]` in the dtype of the products) from left to right; may be asked for once.

        On a GPU the gradient of a tile is formed while the products of the tile before it run.
        """
        started: list[Callable[[], Tensor]] = []
        ahead = 1 if self.head.on_gpu else 0
        for index, tile in enumerate(self.tiles):
            for later in range(len(started), min(len(self.tiles), index + 1 + ahead)):
                started.append(self._start(later, coefficients))
            yield tile, started[index]()

    def _start(self, index: int, coefficients: Coefficients) -> Callable[[], Tensor]:
        return self.head.lane.start(lambda: self._gradient(self.tiles[index], self._logits[index], coefficients))

    def _gradient(self, tile: slice, logits_ck: Tensor, coefficients: Coefficients) -> Tensor:
        head = self.head
        if head.product_dtype == head.sum_dtype:
            return head.gradient(logits_ck, self._targets_c, tile, coefficients, logits_ck)
        gradient_cv = self._whole_cv.view(head.product_dtype)  # its first half is used
        for piece in _doubling(tile):
            out_ck = gradient_cv[:, piece]
            if piece.start == 0:
                out_ck = head.memory("first columns", len(out_ck), piece.stop, head.product_dtype)
            logits_cp = self._whole_cv[:, piece]
            head.gradient(logits_cp, self._targets_c, piece, coefficients, out_ck)
            if piece.start == 0:
                gradient_cv[:, piece].copy_(out_ck)
        return gradient_cv[:, tile]


def _doubling(tile: slice) -> Iterator[slice]:
    """Pieces of a tile from a to at most 2 a; from 0 a first one."""
    start = tile.start
    while start < tile.stop:
        stop = min(tile.stop, 2 * start or _FIRST_COLUMNS)
        yield slice(start, stop)
        start = stop
