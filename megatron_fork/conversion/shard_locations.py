"""Where each parameter of a model is in Megatron's distributed checkpoints, as Megatron itself reports it.

Megatron stacks the layers of a model, and the experts of a layer, into one tensor of the checkpoint, under a name that does not
depend on layout or kernels. A model on the meta device reports names and places, so this file has no second table of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factories
from transformers import PretrainedConfig

from megatron_fork import distributed
from megatron_fork.distributed import ParallelConfig, parallel_layout
from megatron_fork.errors import LayoutError
from megatron_fork.models import build_outline


@dataclass(frozen=True)
class ShardLocation:
    """The part of a checkpoint's tensor that is one whole parameter."""

    key: str
    offset: tuple[int, ...]
    """Its place in the tensor; the leading axes count layers, then experts."""
    shape: tuple[int, ...]
    """Shape of the parameter, with an axis of one for each leading axis."""
    whole: tuple[int, ...]
    """Shape of the tensor."""
    leading: int
    flexible: bool
    """Whether its rows are the vocabulary, which every layout pads to a different length."""

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return self.shape[self.leading :]


@dataclass(frozen=True)
class MetaModel:
    """A whole model as it is stored in a checkpoint."""

    places: dict[str, ShardLocation]
    """By the name of the parameter in the whole model."""
    objects: dict[str, Any]
    """What Megatron stores besides tensors, by key."""


def meta_model_of(hf_config: PretrainedConfig) -> MetaModel:
    """The places of every parameter of `hf_config`'s model, from Megatron; there must be only one rank."""
    if distributed.world_size() > 1:
        raise LayoutError(
            f"a conversion was started on WORLD_SIZE={distributed.world_size()} ranks",
            hint="start it as one process, without torchrun",
        )
    distributed.initialize()
    with parallel_layout(ParallelConfig()):
        state = build_outline(hf_config).sharded_state_dict()
    objects = {value.unique_key: value.data for value in nested_values(state) if isinstance(value, ShardedObject)}
    apply_factories(state)
    parts = {
        name: [part for part in nested_values({name: value}) if isinstance(part, ShardedTensor)]
        for name, value in state.items()
    }
    return MetaModel({name: _joined(found) for name, found in parts.items() if found}, objects)


def _joined(parts: list[ShardedTensor]) -> ShardLocation:
    """One location for a parameter that Megatron writes in parts, such as gate and up projection."""
    first, leading = parts[0], parts[0].prepend_axis_num
    offset = tuple(min(starts) for starts in zip(*(part.global_offset for part in parts), strict=True))
    ends = [
        [start + size for start, size in zip(part.global_offset, (1,) * leading + tuple(part.local_shape), strict=True)]
        for part in parts
    ]
    shape = tuple(max(each) - start for each, start in zip(zip(*ends, strict=True), offset, strict=True))
    return ShardLocation(first.key, offset, shape, tuple(first.global_shape), leading, first.allow_shape_mismatch)
