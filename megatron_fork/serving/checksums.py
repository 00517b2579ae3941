"""A checksum of a tensor that is the sum of its parts' checksums, however an engine has cut it.

Each word of the bits is multiplied by an odd number of its row and one of its column, and all are added modulo 2^64. One word
that differs always shows; anything else does but for a chance of about one in 2^50. -0 counts as 0, as some kernels make it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_fork.serving.deltas import words_of

_MASK = (1 << 64) - 1
# Bytes of a row that an engine may cut into 16 parts and still have whole words of 8 bytes.
_ALIGNED = 128
_CHUNK_WORDS = 1 << 19


def checksum(part: Tensor, *, row: int = 0, column: int = 0, columns: int | None = None) -> int:
    """Of the part `[rows, columns]` that begins at `row` and `column` of a tensor with so many `columns`; 64 bits.

    A tensor of one dimension is a column; one of more than two has its last as columns. Raises `ValueError` if the part is not
    cut at whole words.
    """
    matrix = part.detach().reshape(-1, part.shape[-1] if part.ndim > 1 else 1)
    columns = matrix.shape[1] if columns is None else columns
    size = matrix.itemsize
    a_word = 8 // size if columns * size % _ALIGNED == 0 else 1
    if column % a_word or matrix.shape[1] % a_word:
        raise ValueError(f"it is cut at columns {column} to {column + matrix.shape[1]} of {columns}")
    of_columns = _odd_numbers(column // a_word, matrix.shape[1] // a_word, 1, matrix.device)
    of_rows = _odd_numbers(row, matrix.shape[0], 2, matrix.device)
    total = torch.zeros((), dtype=torch.int64, device=matrix.device)
    step = max(1, _CHUNK_WORDS // max(1, len(of_columns)))
    for first in range(0, matrix.shape[0], step):
        rows = matrix[first : first + step]
        rows = (rows + 0.0 if rows.is_floating_point() else rows).contiguous()
        words = words_of(rows)
        words = (words.view(torch.int64) if a_word > 1 else words.to(torch.int64)).view(len(rows), -1)
        total += ((words * of_columns).sum(1) * of_rows[first : first + step]).sum()
    return int(total) & _MASK


def _odd_numbers(first: int, count: int, salt: int, device: torch.device) -> Tensor:
    """`[count]` int64, the same for the same place: splitmix64's mixing of a counter."""
    mixed = torch.arange(first, first + count, dtype=torch.int64, device=device)
    mixed = (mixed + 1) * _signed(0x9E3779B97F4A7C15) + _signed(salt * 0xD1B54A32D192ED03)
    mixed = (mixed ^ ((mixed >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ ((mixed >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return (mixed ^ ((mixed >> 31) & ((1 << 33) - 1))) | 1


def _signed(number: int) -> int:
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number
