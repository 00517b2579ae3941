"""A Megatron checkpoint as the Hugging Face tensors of a model, and whether it holds that model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork.conversion.located import Located
from megatron_fork.conversion.parameters import model_entries
from megatron_fork.conversion.shard_locations import MetaModel, ShardLocation, meta_model_of
from megatron_fork.conversion.torch_dist import Reader
from megatron_fork.conversion.weight_files import Specification
from megatron_fork.errors import CheckpointError
from megatron_fork.models import Entry, family_of

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class MegatronWeights:
    """A Megatron checkpoint as the Hugging Face tensors of `config`'s model, each read on demand."""

    def __init__(self, located: Located, config: PretrainedConfig) -> None:
        """Check names and shapes; raises `CheckpointError` if the checkpoint does not belong to this model."""
        family_of(config)
        self.config = config
        self.located = located
        self.entries = model_entries(config)
        self.outline: MetaModel = meta_model_of(config)
        self.reader = Reader(located.folder)
        places = {entry.megatron: self.outline.places[entry.megatron] for entry in self.entries}
        check_places(self.reader, {name: (place, None) for name, place in places.items()})
        self._entry_of = {name: entry for entry in self.entries for name in entry.hugging_face}

    @property
    def hugging_face_names(self) -> Iterable[str]:
        return self._entry_of

    @property
    def dtype(self) -> Dtype | None:
        """The dtype of the weights, if all have the same."""
        found = {self._stored(entry) for entry in self.entries}
        return next((name for name, dtype in DTYPES.items() if found == {dtype}), None)

    def _stored(self, entry: Entry) -> torch.dtype:
        return self.reader.tensors[self.outline.places[entry.megatron].key].properties.dtype

    def specification(self, name: str, dtype: Dtype | None = None) -> Specification:
        """Dtype and shape of `name`, without reading it."""
        entry = self._entry_of[name]
        shard = torch.empty(self.outline.places[entry.megatron].parameter_shape, device="meta")
        tensor = entry.rule.join([shard], self.config)[entry.hugging_face.index(name)]
        return Specification(DTYPES[dtype] if dtype else self._stored(entry), tuple(tensor.shape))

    def elements(self, entry: Entry) -> int:
        return torch.Size(self.outline.places[entry.megatron].shape).numel()

    def read(self, entry: Entry) -> Iterable[tuple[str, Tensor]]:
        """The Hugging Face tensors of one parameter."""
        place = self.outline.places[entry.megatron]
        shard = self.reader.read(place.key, place.offset, place.shape).reshape(place.parameter_shape)
        return zip(entry.hugging_face, entry.rule.join([shard], self.config), strict=True)


def check_places(reader: Reader, wanted: Mapping[str, tuple[ShardLocation, torch.dtype | None]]) -> None:
    """Raise `CheckpointError` unless the model's tensors in a checkpoint are exactly the wanted ones."""
    of_model = {key for key in reader.tensors if not key.startswith(("optimizer.", "chained_", "rng_state"))}
    keys = {place.key for place, _ in wanted.values()}
    hint = "config.json belongs to another model, or the checkpoint's architecture is not supported"
    if missing := sorted(keys - of_model):
        raise CheckpointError(f"{reader.folder} has no tensor {missing[0]}, and {len(missing) - 1} more", hint=hint)
    if surplus := sorted(of_model - keys):
        raise CheckpointError(
            f"{reader.folder} has a tensor {surplus[0]}, which the model does not have, and {len(surplus) - 1} more",
            hint=hint,
        )
    for place, dtype in wanted.values():
        stored = reader.tensors[place.key]
        rows_may_be_padded = place.flexible and stored.size[1:] == place.whole[1:] and stored.size[0] >= place.whole[0]
        if tuple(stored.size) != place.whole and not rows_may_be_padded:
            raise CheckpointError(
                f"{reader.folder} has {place.key} in the shape {list(stored.size)}, the model's is {list(place.whole)}",
                hint=hint,
            )
        if dtype is not None and stored.properties.dtype != dtype:
            raise CheckpointError(f"{reader.folder} has {place.key} as {stored.properties.dtype}, not {dtype}")
