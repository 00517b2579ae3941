"""What changed between two versions of a tensor, bit for bit: where, as gaps, and the XOR of its words.

At the learning rates of reinforcement learning few bf16 words change in an update, mostly in their last bits. Words are as wide
as an element. A gap that is too wide for its field is cut by words whose XOR is 0.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Bytes of a gap's field, and the largest gap that it holds.
_GAPS = {1: (torch.uint8, 0xFF), 2: (torch.int16, 0x7FFF)}
_LEVEL = 1
# A compressed message is worth its time if it has at most this fraction of the bytes.
_WORTH = 0.9

WHOLE = -1
"""In place of a number of changes: the tensor itself follows."""

Change = tuple[int, int]
"""(number of changed words, or `WHOLE`; bytes of a gap)."""


def words_of(tensor: Tensor) -> Tensor:
    """`[elements]`: the bits of a contiguous tensor as integers, in its own memory."""
    return tensor.detach().view(-1).view(_WORDS[tensor.itemsize])


def difference(old: Tensor | None, new: Tensor) -> tuple[Change, Tensor]:
    """What turns `old` into `new`, and its bytes; all of `new` if there is no old one of its kind, or that is shorter."""
    whole = (WHOLE, 0), words_of(new).view(torch.uint8)
    if old is None or old.dtype != new.dtype or old.shape != new.shape or not new.numel():
        return whole
    xor = words_of(old) ^ words_of(new)
    places = xor.nonzero().view(-1)
    gaps = torch.diff(places, prepend=places.new_full((1,), -1)) - 1
    if not len(places):
        return (0, 1), whole[1][:0]
    width, count = min(
        ((width, len(gaps) + int((gaps // (limit + 1)).sum())) for width, (_, limit) in _GAPS.items()),
        key=lambda each: each[1] * (each[0] + new.itemsize),
    )
    if count * (width + new.itemsize) >= new.nbytes:
        return whole
    dtype, limit = _GAPS[width]
    fillers = gaps // (limit + 1)
    # A filler stands for `limit` unchanged words and itself, which is not changed either.
    ends = (fillers + 1).cumsum(0) - 1
    cut = torch.full((count,), limit, dtype=torch.int64, device=new.device)
    cut[ends] = gaps - fillers * (limit + 1)
    filled = torch.zeros(count, dtype=xor.dtype, device=new.device)
    filled[ends] = xor[places]
    # Byte by byte of all words: the upper ones are nearly all 0.
    planes = filled.view(torch.uint8).view(count, new.itemsize).t().contiguous()
    return (count, width), torch.cat([cut.to(dtype).view(torch.uint8), planes.view(-1)])


def size_of(change: Change, tensor_bytes: int, itemsize: int) -> int:
    """Bytes that `difference` made of this change."""
    count, width = change
    return tensor_bytes if count == WHOLE else count * (width + itemsize)


def apply(change: Change, data: Tensor, tensor: Tensor) -> None:
    """Make the contiguous `tensor`, which was the old one, the new one; raises `ValueError` if it does not fit."""
    count, width = change
    words = words_of(tensor)
    if len(data) != size_of(change, tensor.nbytes, tensor.itemsize):
        raise ValueError(f"{len(data)} bytes for {count} changes")
    if count == WHOLE:
        words.view(torch.uint8).copy_(data)
        return
    if count == 0:
        return
    gaps = data[: count * width].clone().view(_GAPS[width][0]).to(torch.int64)
    places = (gaps + 1).cumsum(0) - 1
    if int(places[-1]) >= len(words) or int(gaps.min()) < 0:
        raise ValueError(f"a change at place {int(places[-1])} of {len(words)} words")
    planes = data[count * width :].view(tensor.itemsize, count).t()
    xor = (
        planes.clone(memory_format=torch.contiguous_format).view(-1).view(words.dtype)
    )  # a copy begins at a whole word
    words[places] ^= xor


def compressed(data: Tensor) -> Tensor | None:
    """Fewer bytes in main memory for `data`; None where that does not pay."""
    small = zlib.compress(data.numpy().data, _LEVEL) if len(data) else b""
    if len(small) > _WORTH * len(data):
        return None
    return torch.frombuffer(bytearray(small), dtype=torch.uint8) if small else None


def decompressed(data: Tensor, size: int) -> Tensor:
    """The `size` bytes that `compressed` was given; raises `ValueError` if they are not there."""
    reader = zlib.decompressobj()
    try:
        plain = reader.decompress(data.cpu().numpy().data, size)
    except zlib.error as error:
        raise ValueError(f"it cannot be decompressed: {error}") from error
    if len(plain) != size or not reader.eof:
        raise ValueError(f"{len(plain)} bytes come out of it, not {size}")
    return torch.frombuffer(bytearray(plain), dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
