"""The recipe: a typed tree of the settings of every room, read from YAML with dotted overrides.

A recipe may extend another (`base: other.yaml`, relative to itself). Precedence, lowest first: defaults of the dataclasses,
the presets of selection and data, the base recipe, the recipe, overrides on the command line. A run's `resolved.yaml` has
every value that it used and is itself a complete recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Lt

from megatron_fork.cluster import ClusterConfig
from megatron_fork.data import PRESETS as DATA_PRESETS
from megatron_fork.data import DataConfig
from megatron_fork.distributed import ParallelConfig
from megatron_fork.errors import MASK, ConfigError, hide_logins, shown
from megatron_fork.evaluation import EvaluationConfig
from megatron_fork.files import UTF8, at_home, can_be_path
from megatron_fork.models import ComputeConfig, ExpertsConfig, ModelConfig
from megatron_fork.objective import ObjectiveConfig
from megatron_fork.policy import CriticConfig, OptimizerConfig, PolicyConfig
from megatron_fork.recipe import (
    FieldReader,
    FilePath,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Seed,
    Settings,
    alike,
    as_written,
    different,
    flat,
    key_text,
    one_line,
    plain,
    read_yaml,
    recipe_file,
    resolve,
    write_yaml,
)
from megatron_fork.rewards import RewardsConfig
from megatron_fork.rollout import RolloutConfig
from megatron_fork.selection import PRESETS, SelectionConfig
from megatron_fork.vocab_parallel import VocabParallelConfig

# Former dotted names of fields and rooms, with those of today, for the error about an old recipe or `resolved.yaml`.
RENAMED: dict[str, str] = {}
_MOST_BASES, _MOST_DOTS = 20, 20


@dataclass
class SupervisedConfig(Settings, room="sft"):
    """The warm start on demonstrations."""

    steps: NonNegativeInt = 0
    """Optimizer steps of the warm start; 0 skips it."""
    batch: PositiveInt = 32
    """Demonstrations per step."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass
class TrainConfig(Settings, room="train"):
    """The reinforcement-learning loop."""

    steps: NonNegativeInt = 500
    """Rollout batches to train on; 0 only evaluates."""
    prompts_per_step: PositiveInt = 512
    """Prompt groups in a rollout batch."""
    prompts_per_mini_batch: PositiveInt = 32
    """Prompt groups in one optimizer step."""
    max_skipped_updates: NonNegativeInt = 3
    """Updates in a row that may be left out since their loss or gradient norm is NaN or infinite; one more ends the run."""

    def check(self) -> None:
        if self.prompts_per_mini_batch > self.prompts_per_step:
            raise ConfigError(
                f"train.prompts_per_mini_batch={self.prompts_per_mini_batch} is more than "
                f"train.prompts_per_step={self.prompts_per_step}",
                hint="a mini-batch is a part of the rollout batch",
            )


@dataclass
class AlertsConfig(Settings, room="run.alerts"):
    """When a run that goes on tells that something is wrong; NaN and infinity are always told."""

    entropy_below: NonNegativeFloat = 0.01
    """Mean token entropy, in nats, below which it has collapsed; 0: never."""
    steps_without_signal: NonNegativeInt = 10
    """Steps in a row in which no prompt group has signal; 0: never."""
    stalled_seconds: NonNegativeFloat = 3600.0
    """Seconds without a step or an evaluation, such as where servers do not answer; 0: never."""


@dataclass
class RunFolderConfig(Settings, room="run"):
    """What a run leaves behind, and where."""

    folder: FilePath | None = None
    """Folder of the run, by default `runs/<recipe>-<time>`. A folder that holds a checkpoint is resumed."""
    name: str = "run"
    """Name of the run, in its folder's name and in logs; by default the recipe's file name."""
    overwrite: bool = False
    """Remove what an earlier run left in the folder and start over. A job that its scheduler restarts continues instead."""
    checkpoint_every: NonNegativeInt = 25
    """Steps between checkpoints; one is always written at the end and on interruption. 0: only then."""
    checkpoint_async: bool = True
    """Write checkpoints while training goes on."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest checkpoints stay."""
    keep_every: NonNegativeInt = 0
    """Also keep a checkpoint of every so many steps, besides the newest ones; 0: none."""
    trace_every: NonNegativeInt = 10
    """Steps between traces of single trajectories; 0: none."""
    trace_trajectories: NonNegativeInt | None = 8
    """Trajectories in a trace; 0: none; null: all."""
    wandb: str | None = None
    """Project name at Weights & Biases; offline unless this machine is logged in."""
    metric_aliases: list[Literal["verl", "nemo_rl"]] = field(default_factory=list)
    """Also write metrics under the names of these trainers, if they mean the same: verl, nemo_rl."""
    tensorboard: bool = False
    """Also write metrics as TensorBoard event files, to `tensorboard/` in the run's folder."""
    prometheus_port: Annotated[int, Ge(0), Lt(65536)] = 0
    """Port at which the first rank's machine shows the latest metrics to Prometheus, at `/metrics`; 0: none."""
    prometheus_host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is every network of the machine, without any login."""
    alerts: AlertsConfig = field(default_factory=AlertsConfig)
    rank_timeout_seconds: NonNegativeFloat = 30.0
    """Without a sign of life from a rank for so long the others end, and name it; 0: they wait for the collective's timeout."""

    def check(self) -> None:
        if 0 < self.rank_timeout_seconds < 1:
            raise ConfigError(
                f"run.rank_timeout_seconds={self.rank_timeout_seconds} is shorter than a busy machine's pauses",
                hint="set 1 or more, 30 say; 0 switches the watch off",
            )
        if self.checkpoint_every and self.keep_every % self.checkpoint_every:
            raise ConfigError(
                f"run.keep_every={self.keep_every} is not a multiple of run.checkpoint_every={self.checkpoint_every}",
                hint="only checkpoints that are written can be kept",
            )


@dataclass
class RunConfig(Settings):
    """All settings of a run."""

    seed: Seed = 0
    """Seed of every random choice of the run."""
    run: RunFolderConfig = field(default_factory=RunFolderConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    vocab_parallel: VocabParallelConfig = field(default_factory=VocabParallelConfig)
    sft: SupervisedConfig = field(default_factory=SupervisedConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


_FIELDS = FieldReader(RunConfig)


def load_config(recipe: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe, at its path or one that comes with the package, and its overrides.

    Raises `ConfigError` with one line that names the field and the way out.
    """
    file = recipe_file(Path(at_home(str(recipe))))
    return _read(_read_with_base(file, ()), overrides, f"recipe {recipe}", file.stem)


def config_of_model(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of a Hugging Face folder without a recipe: all defaults but those overridden. Raises `ConfigError`."""
    return _read({"model": {"path": str(folder)}}, overrides, f"model {folder}", folder.resolve().name)


def _read(given: dict[str, Any], overrides: Sequence[str], what: str, name: str) -> RunConfig:
    tree = _merge(given, _overrides(overrides))
    _refuse_renamed(tree)
    _FIELDS.check_known(tree)
    tree.setdefault("run", {}).setdefault("name", name)
    try:
        meant = resolve(tree, asdict(RunConfig()))  # a preset's name may be a reference
        for room, presets in (("selection", PRESETS), ("data", DATA_PRESETS)):
            preset = plain(meant.get(room, {}).get("preset", "paper" if room == "selection" else ""))
            tree = _merge(presets.get(str(preset), {}), tree)
        config = _FIELDS.read(resolve(tree, asdict(RunConfig())))
    except (RecursionError, ValueError, TypeError, OverflowError) as error:
        raise ConfigError(
            f"{what} cannot be read: {one_line(error)}", hint="`--print-config` shows how fields are written"
        ) from error
    assert isinstance(config, RunConfig)
    _refuse_masked(config)
    if not config.model.is_given:
        raise ConfigError(f"{what} has no model", hint="set model.path=FOLDER, or model.hf_config for random weights")
    return config


def to_yaml(config: RunConfig) -> str:
    """A complete recipe that gives the same config; references to the environment are kept, logins masked."""
    return write_yaml(as_written(asdict(config)))


def differences(old: str, new: RunConfig) -> list[str]:
    """Dotted names of the fields in which a `resolved.yaml` differs from a config; raises ValueError if it is not a recipe.

    A missing field has its default: the file was written before the field existed. A renamed field is a `ConfigError`.
    """
    stored = plain(read_yaml(old))
    if not isinstance(stored, dict):
        raise ValueError("it is not a mapping of fields")
    _refuse_renamed(stored)
    written = set(different(_merge(as_written(asdict(RunConfig())), stored), as_written(asdict(new))))
    try:
        meant = resolve(stored, asdict(RunConfig()))
    except ConfigError:  # an environment variable that is no longer set
        return sorted(written)
    return sorted(written & set(different(_merge(asdict(RunConfig()), plain(meant)), asdict(new))))


def _refuse_renamed(tree: dict[str, Any]) -> None:
    for name, _ in flat(plain(tree)):
        for former, today in RENAMED.items():
            if f"{name}.".startswith(f"{former}."):
                raise ConfigError(f"{former} has been renamed", hint=f"write {today}, in old recipes too")


def _refuse_masked(config: RunConfig) -> None:
    """Raise `ConfigError` for an address whose login a run has masked; mask all other logins from now on."""
    for name, value in flat(asdict(config)):
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                hide_logins(text)
            if isinstance(text, str) and f"://{MASK}@" in text:
                raise ConfigError(
                    f"{name}={text} has lost its login, which a run never writes to its files",
                    hint="give the address again, or as ${oc.env:NAME}, which is kept unresolved",
                )


def _read_with_base(recipe: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if not recipe.is_file():
        meant = " or ".join(alike(recipe))
        raise ConfigError(
            f"recipe {recipe} is not a file, and none of this name comes with the package",
            hint=f"did you mean {meant}?"
            if meant
            else "name a YAML file with lines such as `seed: 1`, or `quickstart`",
        )
    if recipe.resolve() in seen:
        raise ConfigError(f"recipe {recipe} extends itself through `base`", hint="remove one of these `base` lines")
    try:
        loaded = read_yaml(recipe.read_text(encoding=UTF8))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OSError) as error:
        where = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        place = f" line {where.line + 1}" if where else ""
        raise ConfigError(
            f"recipe {recipe}{place} is not readable YAML: {one_line(error)}", hint="check its indentation"
        ) from error
    loaded = {} if plain(loaded) is None else loaded
    if not isinstance(loaded, dict):
        found = "a list," if isinstance(loaded, list) else f"one value, {shown(plain(loaded))},"
        raise ConfigError(
            f"recipe {recipe} holds {found} not a mapping of fields", hint="write lines such as `seed: 1`"
        )
    tree = {key_text(key): value for key, value in loaded.items()}
    base = plain(tree.pop("base", None))
    if base is None:
        return tree
    if not isinstance(base, str) or not can_be_path(at_home(base)) or len(seen) > _MOST_BASES:
        raise ConfigError(
            f"recipe {recipe} has base={shown(base)}, which does not name a recipe",
            hint="name one file, relative to this one",
        )
    return _merge(_read_with_base(recipe.parent / at_home(base), (*seen, recipe.resolve())), tree)


def _overrides(words: Sequence[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for word in words:
        dotted, equals, text = word.partition("=")
        if not equals or word.startswith("-"):
            raise ConfigError(
                f"{shown(word)} is not an override", hint="write field=value, such as selection.tokens=all"
            )
        *rooms, name = dotted.split(".")
        if len(rooms) > _MOST_DOTS:
            raise ConfigError(f"{shown(word)} is not a field", hint="no field is nested that deep")
        value: Any = {name: _FIELDS.override(dotted, text)}
        for room in reversed(rooms):
            value = {room: value}
        tree = _merge(tree, value)
    return tree


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
