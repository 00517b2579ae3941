"""The weights that a run starts from: a folder's, or random ones that do not depend on the layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from megatron_fork import models
from megatron_fork.checkpoint.bridge import load_weights
from megatron_fork.checkpoint.hugging_face import load_hf, read_config


def resolve_config(source: models.Config) -> PretrainedConfig:
    """The Hugging Face config of a run's model, its architecture known; nothing is allocated."""
    config = read_config(Path(source.path)) if source.path else models.config_from_recipe(source.hf_config or {})
    models.family_of(config)
    return config


def load_initial(model: Sequence[models.PackedModel], source: models.Config, *, seed: int) -> None:
    """Load the folder of `source`, or draw Hugging Face's own initial weights from `seed` on every rank alike."""
    if source.path:
        load_hf(model, source.path)
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = AutoModelForCausalLM.from_config(model[0].hf_config)
    load_weights(model, drawn.state_dict())
