"""Megatron's `torch_dist` format, tensor by tensor: written without holding a model, read without building one.

Both use PyTorch's own storage of distributed checkpoints. Its writer asks for a tensor when it is about to write it, and its
reader reads what a plan names; so only planners that make tensors on demand are added here.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_saver import save

from megatron_fork.checkpoint import COMMON, read_metadata, read_object
from megatron_fork.conversion.shard_locations import ShardLocation
from megatron_fork.errors import CheckpointError


def write(
    folder: Path,
    places: Mapping[str, tuple[ShardLocation, torch.dtype]],
    read: Callable[[str], Tensor],
    *,
    objects: Mapping[str, Any],
    common: Mapping[str, Any],
    workers: int,
) -> None:
    """Write a checkpoint into the empty `folder`; memory holds about two parameters per worker.

    Args:
        folder: exists and is empty.
        places: where each parameter goes, and its dtype.
        read: returns a parameter by name when it is about to be written; called by several threads.
        objects: what Megatron stores besides tensors.
        common: what it stores for all ranks.
        workers: files that are written at the same time.

    """
    writer = FileSystemWriter(folder, thread_count=workers, single_file_per_rank=False)
    planner = _Writing(places, read, objects)
    try:
        save({}, storage_writer=writer, planner=planner, no_dist=True)
    finally:
        # Torch's writer reports a failure in its threads as its own, or not at all.
        if planner.failure is not None:
            raise planner.failure
    torch.save(dict(common), folder / COMMON)
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))


class _Writing(DefaultSavePlanner):
    """A plan of parameters that are made one by one."""

    def __init__(
        self,
        places: Mapping[str, tuple[ShardLocation, torch.dtype]],
        read: Callable[[str], Tensor],
        objects: Mapping[str, Any],
    ) -> None:
        super().__init__(flatten_state_dict=False)
        self.failure: Exception | None = None
        """The first exception that `read` raised."""
        self._read = read
        self._objects = objects
        self._items = [_write_item(place, dtype) for place, dtype in places.values()]
        self._name_at = {item.index: name for item, name in zip(self._items, places, strict=True)}
        self._items += [WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO) for key in objects]

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan(self._items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        if write_item.type is WriteItemType.BYTE_IO:
            stored = io.BytesIO()
            torch.save([self._objects[write_item.index.fqn]], stored)
            return stored
        assert write_item.tensor_data is not None
        try:
            return self._read(self._name_at[write_item.index]).reshape(write_item.tensor_data.chunk.sizes)
        except Exception as error:
            self.failure = self.failure or error
            raise


def _write_item(place: ShardLocation, dtype: torch.dtype) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size(place.offset), torch.Size(place.shape))
    data = TensorWriteData(chunk, TensorProperties(dtype=dtype), torch.Size(place.whole))
    return WriteItem(MetadataIndex(place.key, place.offset), WriteItemType.SHARD, tensor_data=data)


class Reader:
    """Reads parts of the tensors of a checkpoint; may be shared by threads."""

    def __init__(self, folder: Path) -> None:
        """Read the metadata; raises `CheckpointError` if `folder` is not such a checkpoint."""
        self.folder = folder
        self._metadata = read_metadata(folder)
        self.tensors: dict[str, TensorStorageMetadata] = {
            key: entry
            for key, entry in self._metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def common(self) -> dict[str, Any]:
        """What Megatron stored for all ranks; raises `CheckpointError` if that has classes that Megatron does not use."""
        file = self.folder / COMMON
        loaded = read_object(file, str(file)) if file.is_file() else {}
        return loaded if isinstance(loaded, dict) else {}

    def read(self, key: str, offset: Sequence[int], shape: Sequence[int]) -> Tensor:
        """A part of the tensor `key`; raises `CheckpointError` if the files do not hold all of it."""
        stored = self.tensors[key]
        part = torch.empty(tuple(shape), dtype=stored.properties.dtype)
        planner = _Reading(key, stored, ChunkStorageMetadata(torch.Size(offset), torch.Size(shape)), part)
        # A new reader for each part, since a reader has state.
        reader = FileSystemReader(self.folder)
        reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        plan = planner.create_local_plan()
        if sum(item.lengths.numel() for item in plan.items) != part.numel():
            raise CheckpointError(
                f"{self.folder} has only a part of {key}{list(offset)}", hint="the checkpoint is incomplete"
            )
        try:
            reader.read_data(reader.prepare_local_plan(plan), planner).wait()
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{self.folder} cannot be read at {key}{list(offset)}: {str(error).splitlines()[0] if str(error) else error!r}",
                hint="a file is missing or truncated: copy the checkpoint again",
            ) from error
        return part


class _Reading(LoadPlanner):
    """Reads one part of one tensor."""

    def __init__(self, key: str, stored: TensorStorageMetadata, wanted: ChunkStorageMetadata, part: Tensor) -> None:
        self._key, self._stored, self._wanted, self._part = key, stored, wanted, part

    def set_up_planner(self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        return

    def create_local_plan(self) -> LoadPlan:
        return LoadPlan(create_read_items_for_chunk_list(self._key, self._stored, [self._wanted]))

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise AssertionError("the plan has only tensors")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        place = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return self._part[tuple(slice(start, start + length) for start, length in place)]

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        return
