"""The sequences of a micro-batch, as Megatron's parameters of a packed row, with what all layers need of them computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_fork.distributed import versions


@dataclass
class PackedRow(PackedSeqParams):
    """Lengths stand in host memory too: a layer that read them from the GPU would wait for it."""

    lengths: tuple[int, ...] = ()
    """Of the whole row's sequences, also where context ranks share it."""
    position_t: Tensor | None = None
    """`[tokens]` int64, of this context rank's tokens in their sequences."""
    _rotation: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, lengths: tuple[int, ...], cumulative: Tensor, position_t: Tensor, *, ranks: int = 1) -> PackedRow:
        """From `cumulative` lengths `[sequences + 1]` int32 and positions on the model's device; `ranks` share the row."""
        fields = versions.packed_fields(cumulative, max(lengths), ranks=ranks)
        return cls(**fields, lengths=lengths, position_t=position_t)

    @classmethod
    def completed(cls, packed: PackedSeqParams, rank: int, ranks: int) -> PackedRow:
        """Whoever passes Megatron's own parameters pays for reading the lengths once a layer."""
        if isinstance(packed, cls):
            return packed
        lengths = tuple(packed.cu_seqlens_q.diff().tolist())
        position_t = positions(lengths, rank, ranks).to(packed.cu_seqlens_q.device)
        return cls.of(lengths, packed.cu_seqlens_q, position_t, ranks=ranks)

    def rotation(self, angle_sd: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[tokens, d / 2]` of every token, from the angles `[positions, 1, 1, d]` that all layers share."""
        if self._rotation is None or self._rotation[0].dtype != dtype:
            assert self.position_t is not None
            angle_sh = angle_sd[:, 0, 0, : angle_sd.shape[-1] // 2].detach()
            # Rounded as a table of positions, as in Hugging Face and in Megatron.
            cosine, sine = ((wave(angle_sh) * scale).to(dtype) for wave in (torch.cos, torch.sin))
            self._rotation = cosine[self.position_t], sine[self.position_t]
        return self._rotation


def positions(lengths: tuple[int, ...], rank: int, ranks: int) -> Tensor:
    """`[tokens]` of context rank `rank` of `ranks`, which has two chunks of every sequence: chunk `rank` from either end."""
    if ranks == 1:
        return torch.cat([torch.arange(length) for length in lengths])
    parts = []
    for length in lengths:
        chunk = length // (2 * ranks)
        parts += [
            torch.arange(rank * chunk, (rank + 1) * chunk),
            torch.arange(length - (rank + 1) * chunk, length - rank * chunk),
        ]
    return torch.cat(parts)
