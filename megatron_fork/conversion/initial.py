"""The weights that a run starts from: a folder's, or random ones that do not depend on the layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from megatron_fork import models
from megatron_fork.conversion.agreement import Contents, check_folder
from megatron_fork.conversion.hugging_face import (
    GENERATION,
    files_beside,
    load_hf,
    load_weights,
    read_config,
    read_json,
)
from megatron_fork.errors import CheckpointError, ModelError


def resolve_config(source: models.ModelConfig) -> PretrainedConfig:
    """The Hugging Face config of a run's model, whose architecture is supported; nothing is allocated.

    Its `eos_token_id` is only one that was written: a config class's default belongs to another model's vocabulary.
    """
    with _named_in_recipe(source):
        config = read_config(Path(source.path)) if source.path else models.config_from_recipe(source.hf_config or {})
    models.family_of(config)
    *_, of_config = written_ends(source).values()
    if of_config is None:
        config.eos_token_id = None
    return config


def check_initial(source: models.ModelConfig, config: PretrainedConfig) -> Contents | None:
    """What the folder of `source` holds, None if weights are random; raises unless it is `config`'s model."""
    with _named_in_recipe(source):
        return check_folder(Path(source.path), config) if source.path else None


@contextmanager
def _named_in_recipe(source: models.ModelConfig) -> Iterator[None]:
    """Name the field `model.path` in errors about the folder itself."""
    try:
        yield
    except (ModelError, CheckpointError) as error:
        if source.path and error.message.startswith(f"{Path(source.path)} "):
            raise type(error)(f"model.path={error.message}", hint=error.hint) from error
        raise


def written_ends(source: models.ModelConfig) -> dict[str, object]:
    """The tokens that end a response as the model's files name them: by the place that names them, config.json last."""
    if not source.path:
        return {"model.hf_config.eos_token_id": (source.hf_config or {}).get("eos_token_id")}
    files = [Path(source.path) / name for name in (GENERATION, "config.json")]
    return {f"eos_token_id of {file}": read_json(file).get("eos_token_id") for file in files}


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model folder beside its weights: config, tokenizer, and others as given."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    given: dict[Path, bytes]

    @classmethod
    def of(cls, source: models.ModelConfig, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> ModelFiles:
        """Read the files now, since the folder of `source` may be removed during the run."""
        folder = Path(source.path) if source.path else None
        return cls(
            config, tokenizer, {name: (folder / name).read_bytes() for name in files_beside(folder)} if folder else {}
        )

    def write(self, folder: Path) -> None:
        self.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        for name, content in self.given.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)


def load_initial(model: Sequence[models.PackedModel], source: models.ModelConfig, *, seed: int) -> None:
    """Load the folder of `source`, or draw Hugging Face's own initial weights from `seed`, the same on every rank."""
    if source.path:
        load_hf(model, source.path)
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = AutoModelForCausalLM.from_config(model[0].hf_config)
    load_weights(model, drawn.state_dict())
