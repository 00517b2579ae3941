"""A reference stands for a variable of the environment or another field; written out it is a reference still."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.commands import QUICKSTART

from megatron_fork.config import differences, load_config, to_yaml
from megatron_fork.errors import ConfigError


def recipe_of(folder: Path, text: str) -> Path:
    recipe = folder / "recipe.yaml"
    recipe.write_text(f"base: {QUICKSTART}\n{text}\n", encoding="utf-8")
    return recipe


def test_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", str(tmp_path / "runs"))
    monkeypatch.setenv("STEPS", "7")
    recipe = recipe_of(tmp_path, "run: {folder: '${oc.env:PLACE}/one'}\ntrain: {steps: '${oc.env:STEPS}'}")
    config = load_config(recipe, ["run.name=${oc.env:NAME,nobody}"])
    assert (config.run.folder, config.run.name, config.train.steps) == (f"{tmp_path}/runs/one", "nobody", 7)
    written = to_yaml(config)
    assert str(tmp_path) not in written
    assert "${oc.env:PLACE}/one" in written
    (tmp_path / "resolved.yaml").write_text(written)
    assert load_config(tmp_path / "resolved.yaml") == config


def test_of_another_field(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "train: {steps: 9}\nrun: {name: 'steps-${train.steps}-of-${rollout.engine}'}")
    assert load_config(recipe).run.name == "steps-9-of-embedded"


def test_in_a_list_and_under_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WORD", "none")
    monkeypatch.setenv("BELOW", "~/runs")
    config = load_config(QUICKSTART, ["data.no_answer=[a, '${oc.env:WORD}']", "run.folder=${oc.env:BELOW}"])
    assert config.data.no_answer == ["a", "none"]
    assert config.run.folder == f"{tmp_path}/runs"
    assert "[a" not in to_yaml(config)
    assert to_yaml(config).count("${oc.env:") == 2


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("30", 30),
        ("1e-6", 1e-6),
        ("true", True),
        ("off", False),
        ("word", "word"),
        ("[1", "[1"),
        ("inf", "inf"),
        ("", ""),
    ],
)
def test_within_a_mapping_of_anything(text: str, held: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no field says of what kind a value is, a variable's text is read as the recipe's own."""
    monkeypatch.setenv("VALUE", text)
    words = ["model.hf_config.one=${oc.env:VALUE}", "model.hf_config.more=[{below: '${oc.env:VALUE}'}]"]
    config = load_config(QUICKSTART, words)
    found = config.model.hf_config or {}
    assert found["one"] == held and isinstance(found["one"], type(held))
    assert found["more"] == [{"below": held}]
    assert to_yaml(config).count("${oc.env:VALUE}") == (2 if isinstance(held, str) else 0)


@pytest.mark.parametrize(
    "text", ["${oc.env:NOT_THERE}", "${no.such}", "${", "${a", "${run.name}", "${train}", "${x:1}"]
)
def test_one_that_leads_nowhere(text: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name.*refer"):
        load_config(QUICKSTART, [f"run.name={text}"])


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"])))
@example(text="${seed}")
@example(text="${")
@example(text="a${b}${c")
def test_its_characters_are_escaped(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    text = text.replace("\\", "/")
    config = load_config(QUICKSTART, [f"run.name={text}".replace("${", "\\${")])
    if text not in ("", "null"):
        assert config.run.name == text
    recipe = tmp_path_factory.mktemp("resolved") / "recipe.yaml"
    recipe.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(recipe) == config


def test_a_run_is_compared_by_what_is_written_and_by_what_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORD", "one")
    by_reference = load_config(QUICKSTART, ["data.template=${oc.env:WORD}"])
    written = to_yaml(by_reference)
    assert differences(written, by_reference) == []
    assert differences(written, load_config(QUICKSTART, ["data.template=one"])) == []
    assert differences(written, load_config(QUICKSTART, ["data.template=two"])) == ["data.template"]
    monkeypatch.delenv("WORD")
    assert differences(written, load_config(QUICKSTART, ["data.template=one"])) == ["data.template"]
    assert differences(written, by_reference) == []


@pytest.mark.parametrize(
    ("field", "preset", "set_by_it"),
    [("data.preset", "gsm8k", "data.columns.prompt"), ("selection.preset", "trl", "selection.scope")],
)
def test_a_preset_is_named_by_a_reference(
    field: str, preset: str, set_by_it: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRESET", preset)
    words = ["data.source=rows.jsonl", "rewards.kind=math"]
    by_reference = load_config(QUICKSTART, [*words, f"{field}=${{oc.env:PRESET}}"])
    assert by_reference == load_config(QUICKSTART, [*words, f"{field}={preset}"])
    assert differences(to_yaml(load_config(QUICKSTART)), by_reference).count(set_by_it) == 1
