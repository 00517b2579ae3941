"""The model of a recipe, also where its folder is on another machine: shapes of published models come with the package."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from megatron_fork import models
from megatron_fork.config import RunConfig
from megatron_fork.errors import ModelError

_FOLDER = Path(__file__).parent / "published"
# By the model's name without the suffix of a variant, since variants of a model have one shape.
_SUFFIXES = ("-base", "-instruct")


def _stem(name: str) -> str:
    name = name.lower().removeprefix("meta-")
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), name)


_SHAPES = {_stem(path.name): path for path in sorted(_FOLDER.iterdir())}


def shape_name(source: models.ModelConfig) -> str | None:
    """The published shape that stands in for `model.path`; None if the folder exists or the recipe has the config itself.

    It is that of the last part of the path which is a published model's name, or begins with one: a run's folder may be named
    for the model that it trains.
    """
    if not source.path or Path(source.path).is_dir():
        return None
    for folder in reversed(Path(source.path).parts):
        stem = _stem(folder)
        for known, path in _SHAPES.items():
            if stem == known or stem.startswith(f"{known}-"):
                return path.name
    return None


def model_shape(config: RunConfig) -> PretrainedConfig:
    """The Hugging Face config of the recipe's model; nothing is allocated.

    Read from `model.path` if that folder exists, else the published shape of the folder's name. Raises `ModelError` if there is
    neither, or the architecture is not supported.
    """
    name = shape_name(config.model)
    if name is not None:
        return _published(name)
    if config.model.path and not Path(config.model.path).is_dir():
        raise ModelError(
            f"model.path={config.model.path} is not a folder, and names no published model whose shape is known",
            hint=f"name a folder with config.json, or let model.path name one of {', '.join(known_shapes())}",
        )
    # Imported here: it needs all of Megatron, which takes seconds, and a published shape does not.
    from megatron_fork import conversion

    return conversion.resolve_config(config.model)


def known_shapes() -> list[str]:
    return [path.name for path in _SHAPES.values()]


def _published(name: str) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.from_pretrained(_FOLDER / name)
    models.family_of(config)
    return config
