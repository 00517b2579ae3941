"""Hugging Face <-> Megatron weights, and the checkpoints of a run."""

from megatron_fork.checkpoint.agreement import Contents, check_folder
from megatron_fork.checkpoint.bridge import load_weights
from megatron_fork.checkpoint.conversion import Converted, to_hf, to_megatron
from megatron_fork.checkpoint.folder import Saved, latest, verified
from megatron_fork.checkpoint.hugging_face import export_hf, load_hf, read_config
from megatron_fork.checkpoint.initial import (
    ModelFiles,
    check_initial,
    load_initial,
    resolve_config,
    written_ends,
)
from megatron_fork.checkpoint.published import PublishedWeights
from megatron_fork.checkpoint.stream import iter_hf_weights
from megatron_fork.checkpoint.training import BESIDE, Checkpoints, load_training_state
from megatron_fork.checkpoint.verification import PROMPTS, Verification, load_megatron, verify

__all__ = [
    "BESIDE",
    "Checkpoints",
    "Contents",
    "Converted",
    "ModelFiles",
    "PROMPTS",
    "PublishedWeights",
    "Saved",
    "Verification",
    "check_folder",
    "check_initial",
    "export_hf",
    "iter_hf_weights",
    "latest",
    "load_hf",
    "load_initial",
    "load_megatron",
    "load_training_state",
    "load_weights",
    "read_config",
    "resolve_config",
    "to_hf",
    "to_megatron",
    "verified",
    "verify",
    "written_ends",
]
