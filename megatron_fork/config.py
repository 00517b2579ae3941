"""The recipe: a typed tree of every room's own Config, read from YAML with dotted overrides.

A recipe may extend another (`base: other.yaml`, relative to itself). Precedence, lowest first: defaults of the dataclasses,
the presets of selection and data, the base recipe, the recipe, overrides on the command line. Every value that a run used
stands in its `resolved.yaml`, which is itself a complete recipe.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megatron_fork.data import PRESETS as DATA_PRESETS
from megatron_fork.data import Config as DataConfig
from megatron_fork.distributed import Config as ParallelConfig
from megatron_fork.errors import ConfigError
from megatron_fork.evaluation import Config as EvaluationConfig
from megatron_fork.models import ComputeConfig, ExpertsConfig
from megatron_fork.models import Config as ModelConfig
from megatron_fork.objective import Config as ObjectiveConfig
from megatron_fork.policy import Config as PolicyConfig
from megatron_fork.policy import CriticConfig, OptimizerConfig
from megatron_fork.recipe_text import refuse_monstrous
from megatron_fork.rewards import Config as RewardConfig
from megatron_fork.rollout import Config as RolloutConfig
from megatron_fork.selection import PRESETS
from megatron_fork.selection import Config as SelectionConfig
from megatron_fork.vocab_parallel import Config as VocabParallelConfig

# Where infinity means something: no limit to what engine and trainer may differ by.
MAY_BE_INFINITE = frozenset({"rollout.mismatch_limit", "rollout.probe_limit"})
_MOST_BASES, _MOST_DOTS = 20, 20


@dataclass
class SupervisedConfig:
    """The warm start on demonstrations."""

    steps: int = 0
    batch: int = 32
    """Demonstrations a step."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 1:
            raise ConfigError(
                f"sft.steps={self.steps}, sft.batch={self.batch}: not counts", hint="sft.steps=0 skips it"
            )


@dataclass
class TrainConfig:
    """The reinforcement-learning loop."""

    steps: int = 500
    prompts_per_step: int = 512
    """Groups in a rollout batch."""
    prompts_per_mini_batch: int = 32
    """Groups in one optimizer step."""

    def __post_init__(self) -> None:
        for name in ("prompts_per_step", "prompts_per_mini_batch"):
            if vars(self)[name] < 1:
                raise ConfigError(f"train.{name}={vars(self)[name]} is not a count", hint="give 1 or more")
        if self.steps < 0:
            raise ConfigError(f"train.steps={self.steps} is negative", hint="0 only evaluates")
        if self.prompts_per_mini_batch > self.prompts_per_step:
            raise ConfigError(
                f"train.prompts_per_mini_batch={self.prompts_per_mini_batch} is more than "
                f"train.prompts_per_step={self.prompts_per_step}",
                hint="a mini-batch is a part of the rollout batch",
            )


@dataclass
class RunFolderConfig:
    """What a run leaves behind, and where."""

    folder: str | None = None
    """By default `runs/<recipe>-<time>`. A folder that holds a checkpoint is resumed."""
    name: str = "run"
    overwrite: bool = False
    """Remove what an earlier run left in the folder, and begin clean. A job that its scheduler starts again goes on instead."""
    checkpoint_every: int = 25
    """Steps between checkpoints; one is always written at the end and on interruption. 0: only then."""
    checkpoint_async: bool = True
    """Write checkpoints while training goes on."""
    keep_checkpoints: int = 2
    keep_every: int = 0
    """Checkpoints of every so many steps stay beside the newest ones; 0: none."""
    trace_every: int = 10
    """Steps between traces of single trajectories; 0: none."""
    trace_trajectories: int = 8
    wandb: str | None = None
    """Project name; offline unless this machine is logged in."""

    def __post_init__(self) -> None:
        if self.keep_checkpoints < 1:
            raise ConfigError(f"run.keep_checkpoints={self.keep_checkpoints} keeps none", hint="keep at least 1")
        for name in ("checkpoint_every", "keep_every", "trace_every", "trace_trajectories"):
            if vars(self)[name] < 0:
                raise ConfigError(f"run.{name}={vars(self)[name]} is negative", hint="0 switches it off")
        if self.checkpoint_every and self.keep_every % self.checkpoint_every:
            raise ConfigError(
                f"run.keep_every={self.keep_every} is not a multiple of run.checkpoint_every={self.checkpoint_every}",
                hint="only steps that are saved can be kept",
            )


@dataclass
class RunConfig:
    """Everything a run is determined by."""

    seed: int = 0
    run: RunFolderConfig = field(default_factory=RunFolderConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    vocab_parallel: VocabParallelConfig = field(default_factory=VocabParallelConfig)
    sft: SupervisedConfig = field(default_factory=SupervisedConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def load_config(recipe: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and its overrides; raises `ConfigError` with one line that names the field and the way out."""
    tree = _merge(_read_with_base(recipe, ()), _overrides(overrides))
    _check_keys(tree, RunConfig, "")
    tree.setdefault("run", {}).setdefault("name", recipe.stem)
    for room, presets in (("selection", PRESETS), ("data", DATA_PRESETS)):
        preset = tree.get(room, {}).get("preset", "paper" if room == "selection" else "")
        tree = _merge(presets.get(str(preset), {}), tree)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.create(tree))
        _refuse_no_numbers(merged)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise _readable(error) from error
    except (RecursionError, ValueError, TypeError, OverflowError) as error:
        raise ConfigError(
            f"recipe {recipe} cannot be taken: {_one_line(error)}", hint="`--print-config` shows what fields are like"
        ) from error
    assert isinstance(config, RunConfig)
    if not config.model.is_given:
        raise ConfigError(
            f"{recipe} names no model", hint="set model.path=FOLDER, or model.hf_config for random weights"
        )
    return config


def to_yaml(config: RunConfig) -> str:
    """The whole tree, as a recipe that gives the same config."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def differences(old: str, new: RunConfig) -> list[str]:
    """Dotted names of the fields in which a `resolved.yaml` differs from a config; raises ValueError where it is no recipe.

    A field that it lacks has its default: the file was written before there was one.
    """
    stored = yaml.safe_load(old)
    if not isinstance(stored, dict):
        raise ValueError("it is not a mapping of fields")
    defaults = yaml.safe_load(to_yaml(RunConfig()))
    return sorted(_different(_merge(defaults, stored), yaml.safe_load(to_yaml(new)), ""))


def fingerprint(config: RunConfig, *, leave_out: tuple[str, ...]) -> str:
    """A few letters that stand for every field but those whose dotted names begin as in `leave_out`."""
    flat = {name: value for name, value in _flat(yaml.safe_load(to_yaml(config)), "") if not name.startswith(leave_out)}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:12]


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _flat(entry, f"{path}.{key}".lstrip("."))
    else:
        yield path, value


def _different(old: Any, new: Any, path: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = old.keys() | new.keys()
        return [name for key in names for name in _different(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    return [] if old == new else [path]


def _read_with_base(recipe: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if not recipe.is_file():
        raise ConfigError(f"recipe {recipe} is not a file", hint="recipes are YAML files; see examples/")
    if recipe.resolve() in seen:
        raise ConfigError(f"recipe {recipe} extends itself through `base`", hint="remove one `base` line of the circle")
    try:
        refuse_monstrous(recipe.read_text(encoding="utf-8"))
        loaded = OmegaConf.to_container(OmegaConf.load(recipe))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError, OSError) as error:
        where = getattr(error, "problem_mark", None)
        place = f" line {where.line + 1}" if where else ""
        raise ConfigError(
            f"recipe {recipe}{place} is not readable YAML: {_one_line(error)}", hint="check its indentation"
        ) from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"recipe {recipe} is not a mapping of fields", hint="start from examples/quickstart.yaml")
    tree = {str(key): value for key, value in loaded.items()}
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str) or "\0" in base or len(base) > 4096 or len(seen) > _MOST_BASES:
        raise ConfigError(
            f"recipe {recipe} has base={_shown(base)}, which names no recipe",
            hint="name one file, relative to this one",
        )
    return _merge(_read_with_base(recipe.parent / base, (*seen, recipe.resolve())), tree)


def _overrides(words: Sequence[str]) -> dict[str, Any]:
    for word in words:
        if "=" not in word or word.startswith("-"):
            raise ConfigError(
                f"{_shown(word)} is not an override", hint="write field=value, such as selection.tokens=all"
            )
        if word.partition("=")[0].count(".") > _MOST_DOTS:
            raise ConfigError(f"{_shown(word)} is not a field", hint="no field lies that deep")
    try:
        for word in words:
            refuse_monstrous(word.partition("=")[2])
        tree = OmegaConf.to_container(OmegaConf.from_dotlist(list(words)))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"an override cannot be read: {_one_line(error)}", hint="quote its value") from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _check_keys(tree: dict[str, Any], cls: type, path: str) -> None:
    """Refuse unknown fields by name, with the nearest known one."""
    hints = get_type_hints(cls)
    known = [entry.name for entry in fields(cls)]
    for key, value in tree.items():
        dotted = f"{path}{key}"
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {path}{near[0]}?" if near else f"known here: {', '.join(known)}"
            raise ConfigError(f"{_shown(dotted)} is not a field", hint=hint)
        if is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{dotted}={_shown(value)} is not a mapping",
                    hint=f"set its fields, such as {dotted}.{fields(hints[key])[0].name}",
                )
            _check_keys(value, hints[key], f"{dotted}.")


def _refuse_no_numbers(config: Any) -> None:
    """NaN compares with nothing, and so passes whatever range is asked for; infinity means something in few fields only."""
    for name in float_fields(RunConfig):
        value = OmegaConf.select(config, name)
        if value is None or math.isfinite(value) or (value == math.inf and name in MAY_BE_INFINITE):
            continue
        raise ConfigError(f"{name}={value} is not a finite number", hint=f"the default is {_default(name)}")


def float_fields(cls: type, path: str = "") -> Iterator[str]:
    """The dotted name of every field that is a float, or may be one."""
    hints = get_type_hints(cls)
    for entry in fields(cls):
        hint, dotted = hints[entry.name], f"{path}{entry.name}"
        if is_dataclass(hint):
            yield from float_fields(hint, f"{dotted}.")  # type: ignore[arg-type]
        elif float in (hint, *get_args(hint)):
            yield dotted


def _default(dotted: str) -> Any:
    return OmegaConf.select(OmegaConf.structured(RunConfig), dotted)


def _one_line(error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return reason if len(reason) <= 300 else reason[:300] + "..."


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, str | int | float | None) else str(value)
    return text if len(text) <= 80 and text.isprintable() else ascii(text[:80]) + "..."


def _readable(error: OmegaConfBaseException) -> ConfigError:
    field_name = error.full_key or "a field"
    reason = str(error.msg or error).strip().splitlines()[0][:300]
    return ConfigError(f"{_shown(str(field_name))}: {reason}", hint="`--print-config` shows every field with its value")
