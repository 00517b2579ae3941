"""The state of a run on disk: complete checkpoints with a manifest, from which a run resumes under any layout.

Weights are converted in `megatron_fork.conversion`.
"""

import importlib
from typing import Any

from megatron_fork.checkpoint.folder import (
    Saved,
    complete_folders,
    file_names,
    flush_and_describe,
    latest,
    verified,
)
from megatron_fork.checkpoint.manifest import MANIFEST
from megatron_fork.checkpoint.optimizer_state import optimizer_tensors
from megatron_fork.checkpoint.safe_pickle import COMMON, METADATA, read_metadata, read_object, require_known_classes
from megatron_fork.checkpoint.training import BESIDE, Checkpoints, load_training_state

__all__ = [
    "BESIDE",
    "COMMON",
    "MANIFEST",
    "METADATA",
    "Checkpoints",
    "Saved",
    "complete_folders",
    "file_names",
    "flush_and_describe",
    "latest",
    "load_training_state",
    "optimizer_tensors",
    "read_metadata",
    "read_object",
    "require_known_classes",
    "verified",
]


def __getattr__(name: str) -> Any:
    """Names that were here before `megatron_fork.conversion` existed, for older programs."""
    conversion = importlib.import_module("megatron_fork.conversion")
    if name not in conversion.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return vars(conversion)[name]
