"""Megatron's `torch_dist` format, tensor by tensor: written without holding a model, read without building one.

Both use PyTorch's own form of distributed checkpoints. Tensors are written here, each into a file of its own as soon as it is
made, and PyTorch's writer adds the metadata; its reader reads what a plan names.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import (
    DEFAULT_SUFFIX,
    FileSystemReader,
    FileSystemWriter,
    _StorageInfo,
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from megatron_fork.checkpoint import COMMON, METADATA, read_metadata, read_object
from megatron_fork.conversion.journal import Journal, Part
from megatron_fork.conversion.shard_locations import ShardLocation
from megatron_fork.errors import CheckpointError

_CHUNK_BYTES = 16 << 20


def write(
    folder: Path,
    places: Mapping[str, tuple[ShardLocation, torch.dtype]],
    read: Callable[[str], Tensor],
    *,
    objects: Mapping[str, Any],
    common: Mapping[str, Any],
    journal: Journal,
    workers: int,
) -> None:
    """Write a checkpoint into `folder`, each parameter into a file of its own; memory holds about two a worker.

    Args:
        folder: exists; what it holds is of an earlier call that was not finished.
        places: where each parameter goes, and its dtype.
        read: returns a parameter by name when it is about to be written; called by several threads.
        objects: what Megatron stores besides tensors.
        common: what it stores for all ranks.
        journal: of a folder around this one, after `keep_written`; parameters that it has are not written again.
        workers: files that are written at the same time.

    """
    items = [_write_item(place, dtype) for place, dtype in places.values()]
    items += [WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO) for key in objects]
    files = _files(folder, len(items))
    file_of = dict(zip(places, files, strict=False))

    def written(name: str) -> None:
        file, (place, _) = file_of[name], places[name]
        tensor = read(name).reshape(place.shape)
        if tensor.untyped_storage().nbytes() != tensor.nbytes:  # a part of another, all of which would be saved
            tensor = tensor.clone()
        sha256, size = _save(tensor, file)
        journal.add(name, Part(str(file.relative_to(journal.folder)), 0, size, sha256))

    missing = [name for name in places if name not in journal.parts]
    with ThreadPoolExecutor(workers) as pool:
        # The largest first: at the end nothing else would be left to do beside them.
        for _ in pool.map(written, sorted(missing, key=lambda name: -torch.Size(places[name][0].shape).numel())):
            pass
    journal.flush()
    for key, file in zip(objects, files[len(places) :], strict=True):
        _save([objects[key]], file)
    results = [
        WriteResult(item.index, file.stat().st_size, _StorageInfo(file.name, 0, file.stat().st_size))
        for item, file in zip(items, files, strict=True)
    ]
    (folder / METADATA).unlink(missing_ok=True)
    save({}, storage_writer=_Written(folder, results), planner=_Plan(items), no_dist=True)
    torch.save(dict(common), folder / COMMON)
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))


def keep_written(folder: Path, names: Collection[str], *, journal: Journal, workers: int) -> None:
    """Keep in the journal what an earlier `write` of these parameters left in `folder`, and is intact."""
    file_of = dict(zip(names, _files(folder, len(names)), strict=True))

    def belongs(name: str, part: Part) -> bool:
        file = file_of.get(name)
        if file is None or file != journal.folder / part.file or not file.is_file():
            return False
        return (part.start, part.bytes) == (0, file.stat().st_size)

    journal.keep_intact(belongs, workers=workers)


def _files(folder: Path, count: int) -> list[Path]:
    return [folder / f"__0_{number}{DEFAULT_SUFFIX}" for number in range(count)]


def _save(content: Any, file: Path) -> tuple[str, int]:
    """Write a file as `torch.save` does; its SHA-256 and size."""
    with file.open("wb", buffering=0) as stream:
        checksummed = _Checksummed(stream)
        torch.save(content, cast(IO[bytes], checksummed))
        return checksummed.sha256.hexdigest(), stream.tell()


class _Checksummed(io.RawIOBase):
    """A file that is written from its beginning to its end, with its checksum."""

    def __init__(self, stream: io.FileIO) -> None:
        self.sha256 = hashlib.sha256()
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        content = memoryview(data).cast("B")
        for start in range(0, len(content), _CHUNK_BYTES):
            chunk = content[start : start + _CHUNK_BYTES]
            self.sha256.update(chunk)
            while chunk:
                chunk = chunk[self._stream.write(chunk) :]
        return len(content)


class _Plan(DefaultSavePlanner):
    """What is in the files, for the checkpoint's metadata."""

    def __init__(self, items: list[WriteItem]) -> None:
        super().__init__(flatten_state_dict=False)
        self._items = items

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan(self._items)
        return self.plan


class _Written(FileSystemWriter):
    """Writes the metadata of files that are written already."""

    def __init__(self, folder: Path, results: list[WriteResult]) -> None:
        super().__init__(folder)
        self._results = results

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        done: Future[list[WriteResult]] = Future()
        done.set_result(self._results)
        return done

    def storage_meta(self) -> StorageMeta:
        """Without the path and the random name of this saving: the same conversion gives the same bytes."""
        return StorageMeta()


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
        wanted = ChunkStorageMetadata(torch.Size(offset), torch.Size(shape))
        items = create_read_items_for_chunk_list(key, stored, [wanted])
        if sum(item.lengths.numel() for item in items) != torch.Size(shape).numel():
            raise CheckpointError(
                f"{self.folder} has only a part of {key}{list(offset)}", hint="the checkpoint is incomplete"
            )
        try:
            if (file := self._file_of_one(items, stored, wanted)) is not None:
                tensor: Tensor = torch.load(file, map_location="cpu", weights_only=True)
                return tensor
            part = torch.empty(tuple(shape), dtype=stored.properties.dtype)
            # A new reader for each part, since a reader has state.
            reader = FileSystemReader(self.folder)
            reader.set_up_storage_reader(self._metadata, is_coordinator=True)
            reader.read_data(reader.prepare_local_plan(LoadPlan(items)), _Reading(part)).wait()
            return part
        except (FileNotFoundError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{self.folder} cannot be read at {key}{list(offset)}: {str(error).splitlines()[0] if str(error) else error!r}",
                hint="a file is missing or truncated: copy the checkpoint again",
            ) from error

    def _file_of_one(
        self, items: Sequence[ReadItem], stored: TensorStorageMetadata, wanted: ChunkStorageMetadata
    ) -> Path | None:
        """The file that holds the wanted part and nothing else, which is read without a second copy in memory."""
        if len(items) != 1 or wanted not in stored.chunks or self._metadata.storage_data is None:
            return None
        place = self._metadata.storage_data[items[0].storage_index]
        file = self.folder / place.relative_path
        is_alone = place.offset == 0 and place.transform_descriptors is None and file.stat().st_size == place.length
        return file if is_alone else None


class _Reading(LoadPlanner):
    """Reads one part of one tensor."""

    def __init__(self, part: Tensor) -> None:
        self._part = part

    def set_up_planner(self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        return

    def create_local_plan(self) -> LoadPlan:
        raise AssertionError("the plan is made by the reader")

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
