"""What a real model keeps for backward on this machine: bytes of the storages that autograd saves, each counted once."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.transformer.module import Float16Module
from torch import Tensor

from megatron_fork import distributed
from megatron_fork.distributed import ParallelConfig, collectives, parallel_layout
from megatron_fork.models import ComputeConfig, PackedRow, build_chunks, config_from_recipe
from megatron_fork.models.layers.packed_row import positions


@dataclass(frozen=True)
class Case:
    """A model, its layout, and the sequences of one row."""

    model: dict[str, Any]
    lengths: tuple[int, ...]
    parallel: dict[str, Any] = field(default_factory=dict)
    compute: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"


class Saved:
    """Counts what autograd saves, once for each storage and without parameters."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters = {_storage_of(each) for each in model.parameters()}
        self._tensors: dict[int, Tensor] = {}  # kept, so that no storage's address is used again

    def hooks(self) -> AbstractContextManager[None]:
        return torch.autograd.graph.saved_tensors_hooks(self.count, lambda tensor: tensor)

    def count(self, tensor: Tensor) -> Tensor:
        if _storage_of(tensor) not in self._parameters:
            self._tensors.setdefault(_storage_of(tensor), tensor)
        return tensor

    @property
    def bytes(self) -> int:
        """Now: storages may have been freed since they were saved."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._tensors.values())


def _storage_of(tensor: Tensor) -> int:
    """Where the storage itself stands: its data moves when it is freed and filled again."""
    return tensor.untyped_storage()._cdata


def row_of(lengths: tuple[int, ...], rank: int = 0, ranks: int = 1) -> PackedRow:
    """A context rank's row with these sequences."""
    cumulative = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return PackedRow.of(lengths, cumulative, positions(lengths, rank, ranks))


def saved_bytes(case: Case) -> int:
    """Bytes that one rank keeps of a row without pipeline stages, for an LM head on no row at all."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    distributed.initialize()
    with parallel_layout(ParallelConfig(**case.parallel)) as layout:
        config = config_from_recipe(case.model)
        compute = ComputeConfig(backend="local", **case.compute)
        (model,) = build_chunks(config, layout.config, dtype=dtype, compute=compute)
        wrapped = model if dtype == torch.float32 else Float16Module(model.config, model)
        tokens = sum(case.lengths) // layout.config.context
        token_1t = torch.randint(0, config.vocab_size, (1, tokens))
        packed = row_of(case.lengths, collectives.rank(layout.context), collectives.size(layout.context))
        saved = Saved(model)
        with saved.hooks():
            wrapped(
                token_1t,
                torch.arange(tokens)[None],
                None,
                labels=token_1t,
                loss_mask=torch.zeros(1, tokens, dtype=torch.bool),
                packed_seq_params=packed,
            )
        # Held for all layers as long as the row is, in recomputation too.
        for turns in packed.rotation(torch.zeros(0, 1, 1, 0), 1.0, dtype):
            saved.count(turns)
        return saved.bytes


def all_saved(cases: list[Case]) -> list[int]:
    return [saved_bytes(case) for case in cases]
