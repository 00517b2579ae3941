"""Pickles of a checkpoint, read so that they cannot execute anything: only the classes that checkpoints need are allowed.

Three parts of a `torch_dist` folder are pickles: `.metadata`, `common.pt`, and the objects among the tensors. PyTorch and
Megatron unpickle them in ways that depend on their versions, so each is checked here first.
"""

from __future__ import annotations

import importlib
import io
import pickle
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from megatron_fork.errors import CheckpointError

METADATA, COMMON = ".metadata", "common.pt"
TRUST = "open it only if you made it: a pickle can run any program; the project's docs/checkpoints.md says what is read"

# The classes that PyTorch's and Megatron's writers of distributed checkpoints put into `.metadata`.
_OF_METADATA = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.planner": {
        "BytesIOWriteData",
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
    },
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
}
# The classes that Megatron-LM stores, apart from numbers, text, containers and tensors: its arguments and states.
_OF_OBJECTS = (
    "argparse.Namespace",
    "io.BytesIO",
    "pathlib.PosixPath",
    "signal.Signals",
    "types.SimpleNamespace",
    "megatron.core.enums.ModelType",
    "megatron.core.rerun_state_machine.RerunDiagnostic",
    "megatron.core.rerun_state_machine.RerunMode",
    "megatron.core.rerun_state_machine.RerunState",
    "megatron.core.transformer.enums.AttnBackend",
)


class _Metadata(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(vars(torch).get(name), torch.dtype)
        if not is_dtype and name not in _OF_METADATA.get(module, ()):
            raise _UnknownClassError(f"{module}.{name}")
        return super().find_class(module, name)


class _UnknownClassError(Exception):
    """A pickle names a class that checkpoints do not have."""


def read_metadata(folder: Path) -> Metadata:
    """The tensors of a `torch_dist` folder and their places; raises `CheckpointError` if `.metadata` holds anything else."""
    file = folder / METADATA
    try:
        with file.open("rb") as stream:
            metadata = _Metadata(stream).load()
        files = {PurePath(place.relative_path) for place in metadata.storage_data.values()}
        entries = metadata.state_dict_metadata.items()
    except _UnknownClassError as error:
        raise CheckpointError(f"{file} names {error}, which no checkpoint needs", hint=TRUST) from None
    except Exception as error:  # the reader may raise anything if this is not such a pickle
        raise CheckpointError(f"{file} cannot be read: {error!r}", hint="the checkpoint was not completed") from error
    if not isinstance(metadata, Metadata) or not all(isinstance(key, str) for key, _ in entries):
        raise CheckpointError(f"{file} does not describe a checkpoint", hint=TRUST)
    outside = sorted(str(path) for path in files if path.is_absolute() or ".." in path.parts)
    if outside:
        raise CheckpointError(f"{file} names a file outside its folder: {outside[0]}", hint=TRUST)
    return metadata


def read_object(source: Path | BinaryIO, name: str) -> Any:
    """What `torch.save` wrote: plain values, tensors, Megatron's arguments; otherwise `CheckpointError` with `name`."""
    try:
        with torch.serialization.safe_globals(_classes_of_objects()):
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # as above
        unknown = "Unsupported" in str(error) or "weights_only" in str(error)
        first = str(error).splitlines()[0] if str(error) else repr(error)
        why = "holds something that no checkpoint needs" if unknown else "cannot be read"
        raise CheckpointError(f"{name} {why}: {first}", hint=TRUST) from error


def require_known_classes(folder: Path) -> None:
    """Raise `CheckpointError` unless all pickles of a `torch_dist` folder are safe to unpickle."""
    metadata = read_metadata(folder)
    if (folder / COMMON).is_file():
        read_object(folder / COMMON, str(folder / COMMON))
    for index, place in metadata.storage_data.items():
        if isinstance(metadata.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            file = folder / place.relative_path
            try:
                with file.open("rb") as stream:
                    stream.seek(place.offset)
                    stored = io.BytesIO(stream.read(place.length))
            except (OSError, ValueError, TypeError) as error:
                raise CheckpointError(f"{file} cannot be read: {error!r}", hint="copy the checkpoint again") from error
            read_object(stored, f"{index.fqn} in {file}")


def _classes_of_objects() -> list[Any]:
    found = []
    for whole in _OF_OBJECTS:
        module, _, name = whole.rpartition(".")
        found.append(vars(importlib.import_module(module))[name])
    return found
