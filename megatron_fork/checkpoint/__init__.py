"""Hugging Face <-> Megatron weights, and the checkpoints of a run."""

from megatron_fork.checkpoint.bridge import load_weights
from megatron_fork.checkpoint.folder import Saved, latest, verified
from megatron_fork.checkpoint.hugging_face import export_hf, load_hf, read_config
from megatron_fork.checkpoint.initial import load_initial, resolve_config
from megatron_fork.checkpoint.published import PublishedWeights
from megatron_fork.checkpoint.stream import iter_hf_weights
from megatron_fork.checkpoint.training import Checkpoints, load_training_state

__all__ = [
    "Checkpoints",
    "PublishedWeights",
    "Saved",
    "export_hf",
    "iter_hf_weights",
    "latest",
    "load_hf",
    "load_initial",
    "load_training_state",
    "load_weights",
    "read_config",
    "resolve_config",
    "verified",
]
