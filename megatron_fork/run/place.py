"""What the commands beside training are given: a recipe, a run's folder or a model's, and the settings that this means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from megatron_fork.config import RunConfig, config_of_model, load_config
from megatron_fork.errors import ConfigError
from megatron_fork.files import at_home
from megatron_fork.models import ModelConfig
from megatron_fork.recipe import recipe_file

MODEL_FILES = "hugging_face"
"""The folder of a checkpoint that has its config.json and tokenizer."""
_STEP = re.compile(r"(?:step-)?(\d{1,9})")
_OF_MODEL = ("model.path=", "model.hf_config=", "model.hf_config.")


def config_of(place: Path, overrides: Sequence[str] = (), *, checkpoint: str | None = None) -> RunConfig:
    """The settings that `place` means, with its model in `model.path`; nothing but its text is read.

    Args:
        place: a recipe, by its file or its name, which is taken as it is; a run's folder: its `resolved.yaml` with its final
            model, or where it has none its newest checkpoint, or its warm start; a Hugging Face folder: all defaults.
        overrides: dotted, such as `rollout.temperature=0.6`.
        checkpoint: of a run, in place of its final model: `step-N`, `model` or `warm_start`.

    Raises:
        ConfigError: `place` is none of these, has no such model, or a setting is wrong.

    """
    place = Path(at_home(str(place)))
    is_run, is_model = (place / "resolved.yaml").is_file(), (place / "config.json").is_file()
    if checkpoint is not None and not is_run:
        raise ConfigError(f"--checkpoint={checkpoint} with {place}, which is no run's folder", hint="leave it out")
    if not (is_run or is_model) and recipe_file(place).is_file():
        return load_config(place, overrides)
    if not (is_run or is_model):
        raise ConfigError(
            f"{place} is neither a recipe nor the folder of a run or a model",
            hint="give a YAML file, a folder with resolved.yaml, or one with config.json, safetensors and a tokenizer",
        )
    if own := [word for word in overrides if word.startswith(_OF_MODEL)]:
        raise ConfigError(f"{own[0]} with {place}, which is a model of its own", hint="leave one of them out")
    if not is_run:
        return config_of_model(place, overrides)
    config = load_config(place / "resolved.yaml", overrides)
    return replace(
        config,
        model=ModelConfig(path=str(_model_of_run(place, checkpoint))),
        sft=replace(config.sft, steps=0),  # its model has been through it
        run=replace(config.run, folder=None, overwrite=False, wandb=None, prometheus_port=0),
    )


def checkpoint_of(model: ModelConfig) -> Path | None:
    """The checkpoint whose weights `model` means; None where they are in its own folder, or drawn."""
    folder = Path(model.path or "")
    is_checkpoint = folder.name == MODEL_FILES and (folder.parent / "policy").is_dir()
    return folder.parent if is_checkpoint else None


def _model_of_run(run: Path, name: str | None) -> Path:
    steps = run / "checkpoints"
    if name in ("model", "warm_start"):
        found = run / name
    elif name is not None:
        step = _STEP.fullmatch(name)
        found = steps / (f"step-{int(step[1]):06d}" if step else name) / MODEL_FILES
    else:
        latest = (steps / "LATEST").read_text(encoding="utf-8").strip() if (steps / "LATEST").is_file() else ""
        ways = (run / "model", steps / latest / MODEL_FILES, run / "warm_start")
        found = next((each for each in ways if (each / "config.json").is_file()), run / "model")
    if not (found / "config.json").is_file():
        names = [each.name for each in (run / "warm_start", run / "model") if (each / "config.json").is_file()]
        names += sorted(each.parent.parent.name for each in steps.glob(f"step-*/{MODEL_FILES}/config.json"))
        raise ConfigError(
            f"{run} has no {name or 'model'}: {found} has no config.json",
            hint=f"--checkpoint can name {', '.join(names)}" if names else "the run has not saved anything yet",
        )
    return found
