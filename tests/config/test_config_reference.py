"""docs/config.md and the JSON schema say what the classes of settings declare, and the schema takes what `train` takes."""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.commands import PROJECT
from support.recipe_fields import leaves

from megatron_fork.config import RunConfig
from megatron_fork.recipe import plain, read_yaml

sys.path.append(str(PROJECT / "tools"))
from config_reference import markdown, schema

RECIPES = sorted((PROJECT / "examples").rglob("*.yaml"))
SCHEMA = schema()
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
}
ANNOTATIONS = {"$schema", "title", "description", "default"}


def of_type(value: Any, name: str) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def fits(value: Any, rules: dict[str, Any]) -> bool:
    """Whether a value is what a schema asks for, by the few keywords that are used."""
    number = of_type(value, "number")
    text = isinstance(value, str)
    checks = {
        "type": lambda names: any(of_type(value, each) for each in ([names] if isinstance(names, str) else names)),
        "anyOf": lambda options: any(fits(value, each) for each in options),
        "enum": lambda words: value in words,
        "minimum": lambda bound: not number or value >= bound,
        "maximum": lambda bound: not number or value <= bound,
        "exclusiveMinimum": lambda bound: not number or value > bound,
        "exclusiveMaximum": lambda bound: not number or value < bound,
        "pattern": lambda expression: not text or re.search(expression, value),
        "items": lambda each: not isinstance(value, list) or all(fits(entry, each) for entry in value),
        "properties": lambda known: (
            not isinstance(value, dict) or all(fits(value[name], known[name]) for name in value if name in known)
        ),
        "additionalProperties": lambda allowed: allowed or set(value) <= set(rules["properties"]),
    }
    return all(checks[name](rule) for name, rule in rules.items() if name not in ANNOTATIONS)


def rules_of(dotted: str) -> dict[str, Any]:
    rules = SCHEMA
    for part in dotted.split("."):
        rules = rules["properties"][part]
    return rules


@pytest.mark.parametrize(
    ("name", "made"),
    [("config.md", markdown()), ("recipe.schema.json", json.dumps(SCHEMA, indent=1, ensure_ascii=False) + "\n")],
    ids=["config.md", "recipe.schema.json"],
)
def test_they_are_current(name: str, made: str) -> None:
    assert (PROJECT / "docs" / name).read_text(encoding="utf-8") == made, "run python tools/config_reference.py"


def test_every_field_is_there() -> None:
    for dotted, _ in leaves(RunConfig):
        assert f"| `{dotted}` |" in markdown()
        assert len(rules_of(dotted)["description"]) > 4


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipes_fit(recipe: Path) -> None:
    assert fits(plain(read_yaml(recipe.read_text(encoding="utf-8"))), SCHEMA)


def test_a_resolved_recipe_fits() -> None:
    assert fits(asdict(RunConfig()), SCHEMA)


@pytest.mark.parametrize(
    ("field", "held", "refused"),
    [
        ("train.steps", [0, 3, "${oc.env:STEPS}"], [-1, 1.5, "many", None, True, [1]]),
        ("selection.ratio", [0.2, 1, "${oc.env:RATIO}"], [0, 1.1, "much", None]),
        ("selection.preset", ["paper", "${oc.env:PRESET}"], ["papers", None, 1]),
        ("data.preset", ["gsm8k", None], ["gsm9k"]),
        ("data.sha256", ["0" * 64, None], ["0" * 63, "G" * 64]),
        ("run.name", ["a", 7, "${train.steps}"], [None, ["a"]]),
        ("run.overwrite", [True, "${oc.env:AGAIN}"], [1, "maybe"]),
        ("data.no_answer", [[], ["none", 3]], ["none", [None]]),
        ("rollout.stop_tokens", [[1, "${oc.env:END}"]], [[1.5], ["a"]]),
        ("model.hf_config", [None, {"model_type": "qwen3", "any": {"thing": [1]}}], [3, []]),
        ("optimizer.beta1", [0, 0.9], [1.0, -0.1]),
    ],
)
def test_a_value_fits_where_train_takes_it(field: str, held: list[Any], refused: list[Any]) -> None:
    assert [each for each in held if not fits(each, rules_of(field))] == []
    assert [each for each in refused if fits(each, rules_of(field))] == []


def test_what_is_no_field_does_not_fit() -> None:
    assert fits({"base": "other.yaml", "train": {"steps": 1}}, SCHEMA)
    assert not fits({"train": {"stepps": 1}}, SCHEMA) and not fits({"trian": {}}, SCHEMA) and not fits([], SCHEMA)
