"""Hugging Face <-> Megatron weights: tensor names, sharding, loading, export, conversion and its verification."""

from megatron_fork.conversion.agreement import Contents, check_folder
from megatron_fork.conversion.convert import Converted, to_hf, to_megatron
from megatron_fork.conversion.hugging_face import export_hf, load_hf, load_weights, read_config
from megatron_fork.conversion.initial import (
    ModelFiles,
    check_initial,
    load_initial,
    resolve_config,
    written_ends,
)
from megatron_fork.conversion.published import PublishedWeights
from megatron_fork.conversion.stream import iter_hf_weights
from megatron_fork.conversion.unfinished import partial_of
from megatron_fork.conversion.verification import PROMPTS, Verification, load_megatron, verify

__all__ = [
    "PROMPTS",
    "Contents",
    "Converted",
    "ModelFiles",
    "PublishedWeights",
    "Verification",
    "check_folder",
    "check_initial",
    "export_hf",
    "iter_hf_weights",
    "load_hf",
    "load_initial",
    "load_megatron",
    "load_weights",
    "partial_of",
    "read_config",
    "resolve_config",
    "to_hf",
    "to_megatron",
    "verify",
    "written_ends",
]
