"""How prompts are evaluated, and which sets there are beside the held-out prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from megatron_fork.data import PRESETS, DataConfig
from megatron_fork.errors import ConfigError, MegatronForkError, shown
from megatron_fork.recipe import FieldReader, NonNegativeInt, PositiveInt, Settings
from megatron_fork.rewards import RewardsConfig

HELD_OUT = "held_out"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_FIELD_OF_DATA = re.compile(r"(?<![\w./])data\.")
_FIELD_OF_REWARDS = re.compile(r"(?<![\w./])rewards\.")
_DATA = FieldReader(DataConfig)


@dataclass
class EvaluationConfig(Settings, room="evaluation"):
    """How prompts are evaluated."""

    samples: PositiveInt = 16
    """Samples per prompt, at the rollout temperature."""
    greedy: bool = True
    """Also decode each held-out prompt once with the most likely tokens."""
    every: NonNegativeInt = 10
    """Steps between evaluations; 0 evaluates only before and after training."""
    sets: dict[str, Any] = field(default_factory=dict)
    """Prompt sets beside the held-out prompts, by name: `{aime24: {source: FILE, preset: aime_2024, samples: 32, every: 10}}`.
    Fields of `data` say how a file is read; `samples` and `every` are those above unless given, and its `rewards` those of the
    run (docs/evaluation.md)."""

    def check(self) -> None:
        for name, given in self.sets.items():
            prompt_set(name, given, self, DataConfig())


@dataclass
class SetConfig(Settings, room="evaluation.sets"):
    """When and how often the prompts of a set are drawn."""

    samples: PositiveInt = 16
    """Samples per prompt."""
    every: NonNegativeInt = 10
    """Steps between evaluations."""


@dataclass(frozen=True)
class PromptSet:
    """A set of prompts that is evaluated whole, or the held-out part of the training prompts."""

    name: str
    data: DataConfig
    samples: int
    every: int
    is_whole: bool = True
    rewards: RewardsConfig | None = None
    """How its responses are judged; None: as the run's."""


def prompt_sets(evaluation: EvaluationConfig, data: DataConfig, rewards: RewardsConfig) -> list[PromptSet]:
    """The sets of `evaluation`; template and rewards are those of the run's `data` and `rewards` unless they have their own."""
    return [prompt_set(name, given, evaluation, data, rewards) for name, given in evaluation.sets.items()]


def held_out_set(evaluation: EvaluationConfig, data: DataConfig) -> PromptSet:
    """The held-out prompts as a set."""
    return PromptSet(HELD_OUT, data, evaluation.samples, evaluation.every, is_whole=False)


def prompt_set(
    name: str,
    given: Any,
    evaluation: EvaluationConfig,
    training: DataConfig,
    rewards: RewardsConfig | None = None,
) -> PromptSet:
    """The set that `evaluation.sets.NAME` describes; raises `ConfigError` that names its field.

    Its own rewards are read only if the run's, which they complete, are given.
    """
    place = f"evaluation.sets.{name if _NAME.fullmatch(name) else ascii(name)}"
    if _NAME.fullmatch(name) is None or name == HELD_OUT:
        raise ConfigError(
            f"{place} is no name of a set",
            hint="letters, digits, `_` and `-`, and not held_out",
        )
    if not isinstance(given, Mapping):
        raise ConfigError(f"{place}={shown(given)} is not a mapping", hint=f"write {place}.source=FILE")
    own = {field: value for field, value in given.items() if field in ("samples", "every")}
    fields = {field: value for field, value in given.items() if field not in own and field != "rewards"}
    if "source" not in fields:
        raise ConfigError(f"{place} has no source", hint=f"name its file: {place}.source=FILE")
    preset = fields.get("preset")
    tree = _merged(PRESETS[preset]["data"], fields) if isinstance(preset, str) and preset in PRESETS else fields
    try:
        data = _DATA.read(tree)
        judged = _own_rewards(place, given["rewards"], rewards) if rewards and "rewards" in given else None
        chosen = FieldReader(SetConfig).read({"samples": evaluation.samples, "every": evaluation.every, **own})
    except (MegatronForkError, AttributeError) as error:
        raise _named(place, error) from error
    if "template" not in fields and training.template != "none":
        data = replace(data, template=training.template)
    if "max_prompt_tokens" not in fields:
        data = replace(data, max_prompt_tokens=max(data.max_prompt_tokens, training.max_prompt_tokens))
    return PromptSet(name, data, chosen.samples, chosen.every, rewards=judged)


def _own_rewards(place: str, given: Any, rewards: RewardsConfig) -> RewardsConfig:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{place}.rewards={shown(given)} is not a mapping", hint=f"write {place}.rewards.kind=math")
    try:
        return FieldReader(RewardsConfig).read({**vars(rewards), **given})
    except MegatronForkError as error:
        message = error.message.removeprefix("rewards.")
        raise ConfigError(
            f"{place}.rewards.{message}", hint=_FIELD_OF_REWARDS.sub(f"{place}.rewards.", error.hint)
        ) from error


def _named(place: str, error: MegatronForkError | AttributeError) -> ConfigError:
    """An error about a set's field, by the set's name."""
    if not isinstance(error, MegatronForkError):
        return ConfigError(f"{place} has a field of another form: {error}", hint="see docs/evaluation.md")
    message = error.message
    if message.startswith(place):
        return ConfigError(message, hint=error.hint)
    for room in ("data.", "evaluation.sets."):
        message = message.removeprefix(room)
    return ConfigError(f"{place}.{message}", hint=_FIELD_OF_DATA.sub(f"{place}.", error.hint))


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged
