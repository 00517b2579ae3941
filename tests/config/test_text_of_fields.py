"""A field of text holds the text that it was given, a path the user's home for `~`, a number no NaN; the rest as it says."""

import contextlib
import math
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.commands import QUICKSTART
from support.recipe_fields import leaves

from megatron_fork.config import RunConfig, load_config, to_yaml
from megatron_fork.errors import ConfigError, MegatronForkError
from megatron_fork.recipe import bare, is_path
from megatron_fork.recipe.text import plain, read_yaml, write_yaml

PATHS = {"run.folder", "model.path", "data.source"}

# Without a check of their own, which refuses most text: any text must reach these.
FREE = sorted(
    name
    for name, hint in leaves(RunConfig)
    if bare(hint)[0] is str
    and name not in ("data.preset", "data.sha256", "rewards.kind", "data.generator.task")
    and name not in ("objective.loss", "rollout.engine", "selection.tokens", "cluster.gpu")
    and name not in PATHS
    and not name.startswith("cluster.slurm.")
)
RETYPED = [
    "2026_11_27",
    "007",
    "12:30",
    "off",
    "no",
    "1e5",
    "0x1f",
    "a # b",
    "#a",
    "[a",
    "{{ x }}",
    "???",
    "2026-11-27",
    " a ",
    "a: b",
    "'a'",
    "~",
    "null ",
    "None",
    "true",
    "!!python/none",
    "&a",
    "*a",
    ".nan",
]


def value_of(config: RunConfig, dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def is_optional(dotted: str) -> bool:
    return NoneType in get_args(dict(leaves(RunConfig))[dotted])


def test_the_free_fields_are_found() -> None:
    assert {name for name, hint in leaves(RunConfig) if is_path(hint)} == PATHS
    assert {"run.name", "run.wandb", "data.template", "data.columns.prompt", "data.prompt_prefix"} <= set(FREE)


@pytest.mark.parametrize("text", RETYPED)
@pytest.mark.parametrize("name", FREE)
def test_an_override_is_not_retyped(name: str, text: str) -> None:
    assert value_of(load_config(QUICKSTART, [f"{name}={text}"]), name) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text(), name=st.sampled_from(FREE))
@example(text="null", name="run.wandb")
@example(text="", name="run.wandb")
@example(text="null", name="run.name")
def test_any_text_is_held_and_written(text: str, name: str) -> None:
    text = text.replace("${", "$")  # the beginning of a reference: see test_references
    config = load_config(QUICKSTART, [f"{name}={text}"])
    assert value_of(config, name) == (None if is_optional(name) and text in ("", "null") else text)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"])), name=st.sampled_from(FREE))
@example(text="1e5", name="run.name")
@example(text="12:30", name="run.name")
@example(text="2026_11_27", name="run.name")
def test_what_is_held_is_what_a_resolved_recipe_says(
    tmp_path_factory: pytest.TempPathFactory, text: str, name: str
) -> None:
    text = text.replace("${", "$")
    config = load_config(QUICKSTART, [f"{name}={text}"])
    recipe = tmp_path_factory.mktemp("resolved") / "recipe.yaml"
    recipe.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(recipe) == config
    assert yaml.safe_load(to_yaml(config))["run"]["name"] == config.run.name


@pytest.mark.parametrize("text", ["2026_11_27", "007", "12:30", "off", "1e5", "2026-11-27"])
def test_a_recipe_is_not_retyped(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base: {QUICKSTART}\nrun: {{name: {text}, wandb: {text}}}\nrollout: {{servers: [{text}]}}\n")
    with pytest.raises(MegatronForkError, match=r"rollout\.servers"):
        load_config(recipe)  # it is the text that is no address
    config = load_config(recipe, ["rollout.servers=[]"])
    assert config.run.name == config.run.wandb == text


@pytest.mark.parametrize(
    ("text", "held"),
    [("[http://a:1, 007, off, null]", ["http://a:1", "007", "off", "null"]), ("off", ["off"]), ("[]", [])],
)
def test_lists_of_text(text: str, held: list[str]) -> None:
    assert load_config(QUICKSTART, [f"data.no_answer={text}"]).data.no_answer == held


@pytest.mark.parametrize("name", sorted(PATHS))
@pytest.mark.parametrize("in_recipe", [True, False])
def test_the_home_of_a_path(name: str, in_recipe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["model.hf_config=null"] if name == "model.path" else []
    for text, held in (("~/a b", f"{tmp_path}/a b"), ("~nobody-here/a", "~nobody-here/a"), ("a/~/b", "a/~/b")):
        room, field = name.split(".")
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({"base": str(QUICKSTART), room: {field: text}}))
        config = load_config(recipe, words) if in_recipe else load_config(QUICKSTART, [*words, f"{name}={text}"])
        assert value_of(config, name) == held


def test_recipes_and_their_bases_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "low.yaml").write_text(f"base: {QUICKSTART}\nseed: 7\n")
    (tmp_path / "high.yaml").write_text("base: ~/low.yaml\n")
    assert load_config(Path("~/high.yaml")).seed == 7


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("train.steps=12:30", "train.steps=12:30 is not a whole number"),
        ("train.steps=1.5", "is not a whole number"),
        ("train.steps=true", "is not a whole number"),
        ("train.steps=", "train.steps=None is not a whole number"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate=nan is not a finite number"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate=nan is not a finite number"),
        ("optimizer.learning_rate=1e999", "optimizer.learning_rate=inf is not a finite number"),
        ("optimizer.learning_rate=true", "is not a number"),
        ("run.overwrite=maybe", "is not true or false"),
        ("rollout.sync=nfs", "is not one of disk, gloo, nccl"),
        ("data.no_answer=[[a]]", "is not text"),
        ("run.name.x=1", "run.name"),
        ("selection.ratio=[0.2", "cannot be read"),
    ],
)
def test_what_is_not_of_a_fields_kind(word: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(QUICKSTART, [word])
    assert named in caught.value.message and caught.value.hint and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("train.steps=010", 10),
        ("seed=0xff", 255),
        ("seed=-7", -7),
        ("train.steps=1_000", 1000),
        ("optimizer.learning_rate=1e-6", 1e-6),
        ("optimizer.learning_rate=1", 1.0),
        ("rollout.mismatch_limit=.inf", math.inf),
        ("run.overwrite=yes", True),
        ("run.overwrite=False", False),
        ("data.rows=null", None),
        ("model.hf_config.rms_norm_eps=1e-6", None),
    ],
)
def test_numbers_are_decimal(word: str, value: Any) -> None:
    config = load_config(QUICKSTART, [word])
    if word.startswith("model."):
        assert config.model.hf_config is not None and config.model.hf_config["rms_norm_eps"] == 1e-6
    else:
        assert value_of(config, word.partition("=")[0]) == value


def test_a_literal_is_text() -> None:
    """`none` and `off` are words where a field knows them as words."""
    literals = [name for name, hint in leaves(RunConfig) if get_origin(hint) is Literal]
    assert len(literals) > 20
    for name in literals:
        for choice in get_args(dict(leaves(RunConfig))[name]):
            try:
                config = load_config(QUICKSTART, [f"{name}={choice}"])
            except MegatronForkError as error:
                assert "is not one of" not in error.message  # what does not go with other fields is refused for that
            else:
                assert value_of(config, name) == choice


@settings(max_examples=300, deadline=None)
@given(
    text=st.one_of(st.text(max_size=60), st.text(alphabet="[]{}:,-&*!|>'\"%@`#? \n\t0123456789abe.~<=$", max_size=40))
)
@example(text='run: {folder: "a\\0b"}')
@example(text='model: {path: "\\0"}')
@example(text="run: {<<: {name: 3}}")
@example(text="<<: [1]")
@example(text="seed: 2001-12-14t21:59:43.10-05:00")
@example(text="seed: !!binary aGk=")
@example(text="data: {no_answer: !!set {a, b}}")
@example(text="run: !!omap [a: 1]")
@example(text="? {a: 1}\n: 2")
def test_no_text_is_a_traceback(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As a recipe, as an override's value, and as an override."""
    recipe = tmp_path_factory.mktemp("any") / "recipe.yaml"
    recipe.write_bytes(text.encode("utf-8", "surrogatepass"))
    for words in ([], [text], [f"seed={text}"], [f"model.hf_config={text}"], [f"rollout.servers={text}"]):
        with contextlib.suppress(MegatronForkError):
            load_config(QUICKSTART if words else recipe, words)


@settings(max_examples=200, deadline=None)
@given(
    st.text(
        st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("\x85\u2028\ufeff \n\r\t'\"#:")), min_size=1
    )
)
@example("\x85")
@example("a\x85 b")
def test_what_is_written_is_read_again(text: str) -> None:
    tree = {"text": text, "list": [text], "mapping": {f"-{text[:50]}": text}}
    assert plain(read_yaml(write_yaml(tree))) == tree


LONG = "x" * 256


@pytest.mark.parametrize("place", [LONG, f"runs/{LONG}/a", "é" * 128, "a/" * 2100, "\ud800", "~/" + LONG])
@pytest.mark.parametrize("name", sorted(PATHS))
def test_what_no_file_system_takes_is_no_path(name: str, place: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}=.* is not a path$"):
        load_config(QUICKSTART, [f"{name}={place}"])
    assert load_config(QUICKSTART, [f"run.folder={'x' * 255}/{'é' * 127}"]).run.folder


def test_a_base_that_no_file_system_takes(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"base: {LONG}.yaml\n")
    with pytest.raises(ConfigError, match="which does not name a recipe"):
        load_config(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("train:\n\tsteps: 1\n", r"line 2 .*'\\t' that cannot start any token"),
        ("rollout: {stop_tokens: [1\n", "expected ',' or ']'"),
        ("train: {steps: 1\nseed: 2\n", "expected ',' or '}'"),
        ("seed: 1\n---\nseed: 2\n", "but found another document"),
    ],
)
def test_yaml_is_refused_by_what_is_wrong_and_not_by_what_was_being_read(
    text: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        load_config(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("room", ["optimizer", "sft.optimizer", "critic.optimizer"])
@pytest.mark.parametrize(
    "word", ["learning_rate=0", "beta1=1", "warmup_updates=-1", "offload=2", "overlap_parameters=true"]
)
def test_an_optimizer_is_told_from_the_others(room: str, word: str) -> None:
    with pytest.raises(ConfigError, match=f"^{room}.{word.partition('=')[0]}="):
        load_config(QUICKSTART, [f"{room}.{word}"])
