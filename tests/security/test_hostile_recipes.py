"""A recipe that is none is one line; a number that is none is refused by the name of its field, whichever field it is."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import QUICKSTART
from support.recipe_fields import leaves

from megatron_fork.config import RunConfig, load_config
from megatron_fork.errors import ConfigError
from megatron_fork.policy import OptimizerConfig
from megatron_fork.recipe import bare, may_be_infinite

FLOATS = sorted(name for name, hint in leaves(RunConfig) if bare(hint)[0] is float)
MAY_BE_INFINITE = {"rollout.mismatch_limit", "rollout.probe_limit"}
LAUGHS = "a0: &a0 [ha]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))


def refused(recipe: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides)
    assert "\n" not in caught.value.message and len(caught.value.message) < 700
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("run: null", "run=None is not a mapping"),
        ("model: 3", "model=3 is not a mapping"),
        ("model: null", "model=None is not a mapping"),
        ("selection: [a]", "selection=['a'] is not a mapping"),
        ("selection: {preset: [paper]}", "selection.preset"),
        ("data: {preset: {a: b}}", "data.preset"),
        ("5", "recipe"),
        ("text", "recipe.yaml holds one value, text, not a mapping of fields"),
        ("null", "has no model"),
        ("[1, 2]", "not a mapping of fields"),
        ("", "has no model"),
        ("seed: " + "[" * 200 + "]" * 200, "nested more than 20 levels"),
        ("seed: " + "[" * 50_000, "nested more than 20 levels"),
        ("{a: " * 50_000, "nested more than 20 levels"),
        (LAUGHS, "stands for more than 20,000 values"),
        ("a: &a [*a]", "contains itself"),
        ("a: &a {b: *a}", "contains itself"),
        ("seed: " + "9" * 10_000, "is not readable YAML"),
        ("1: 2", "1 is not a field"),
        ("? [a]\n: b", "is not readable YAML"),
        ("seed: ${seed}", "seed"),
        ("seed: ${absent}", "seed"),
        ("base: 5", "base=5, which does not name a recipe"),
        ("base: [a]", "which does not name a recipe"),
        ("base: '" + "a" * 5000 + "'", "which does not name a recipe"),
        ("seed: !!python/object/apply:os.system [ls]", "is not readable YAML"),
        ("optimizer: {learning_rate: fast}", "optimizer.learning_rate"),
        ("optimizer: {learning_rate: -1}", "learning_rate=-1.0 is not positive"),
        ("optimizer: {learning_rate: [1]}", "optimizer.learning_rate"),
        ("optimizer: {learning_rate: null}", "optimizer.learning_rate"),
        ("seed: '" + "x" * (1 << 20) + "'", "characters"),
        ("\x00", "is not readable YAML"),
    ],
    ids=range(32),
)
def test_what_is_no_recipe(text: str, named: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    assert named in refused(recipe)


@pytest.mark.parametrize(
    "word", ["seed=" + "[" * 5000, "a" + ".b" * 5000 + "=1", "run=null", "model=3", "seed=[*a]", "model.hf_config=[1]"]
)
def test_what_is_no_override(word: str) -> None:
    refused(QUICKSTART, word)


@pytest.mark.parametrize("room", [name for name in vars(RunConfig()) if name != "seed"])
@pytest.mark.parametrize("value", ["null", "3", "text", "[1]", ".nan", "true"])
def test_every_room_is_a_mapping(room: str, value: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{room}: {value}\n")
    assert refused(recipe).startswith(f"{room}=")


def set_to(tmp_path: Path, name: str, value: float) -> Path:
    tree: Any = value
    for part in reversed(name.split(".")):
        tree = {part: tree}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model": {"path": "somewhere"}, **tree}))
    return recipe


def test_the_fields_are_found() -> None:
    assert {"optimizer.learning_rate", "critic.optimizer.beta2", "rollout.remote.idle_seconds"} <= set(FLOATS)
    assert len(FLOATS) > 40
    assert {name for name, hint in leaves(RunConfig) if may_be_infinite(hint)} == MAY_BE_INFINITE


@pytest.mark.parametrize("name", FLOATS)
def test_no_float_is_nan_and_few_are_infinite(name: str, tmp_path: Path) -> None:
    for value in (math.nan, math.inf, -math.inf):
        recipe = set_to(tmp_path, name, value)
        if value == math.inf and name in MAY_BE_INFINITE:
            load_config(recipe)
        else:
            assert refused(recipe) == f"{name}={value} is not a finite number"


@pytest.mark.parametrize("name", ["learning_rate", "beta1", "beta2", "weight_decay", "clip_gradient", "offload"])
def test_an_optimizer_made_by_hand_refuses_nan(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        OptimizerConfig(**{name: math.nan})
