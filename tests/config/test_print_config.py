"""`--print-config` shows every field with what it means, and is a recipe of the same run."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from support.commands import PROJECT, QUICKSTART

from megatron_fork.config import RunConfig, load_config, to_yaml
from megatron_fork.recipe import described, meanings

RECIPES = sorted((PROJECT / "examples").rglob("*.yaml"))


def classes(cls: Any) -> list[type]:
    below = [hint for hint in get_type_hints(cls).values() if is_dataclass(hint)]
    return [cls, *(found for each in below for found in classes(each))]


@pytest.mark.parametrize("cls", dict.fromkeys(classes(RunConfig)), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_field_has_a_meaning(cls: type) -> None:
    hints, found = get_type_hints(cls), meanings(cls)
    nameless = [each.name for each in fields(cls) if not is_dataclass(hints[each.name]) and len(found[each.name]) < 5]
    assert not nameless


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_it_is_a_recipe_of_the_same_run(recipe: Path, tmp_path: Path) -> None:
    config = load_config(recipe, ["data.prompt_prefix=a # b\n\tc", "run.wandb=12:30"])
    printed = described(config)
    again = tmp_path / "printed.yaml"
    again.write_text(printed, encoding="utf-8")
    assert load_config(again) == config
    assert yaml.safe_load(printed) == yaml.safe_load(to_yaml(config))


def test_a_comment_stands_above_its_field() -> None:
    lines = described(load_config(QUICKSTART)).splitlines()
    assert (
        lines[lines.index("  samples: 16") - 1] == "  # Responses per prompt, which form its prompt group. (1 or more)"
    )
    assert max(map(len, lines)) <= 128
