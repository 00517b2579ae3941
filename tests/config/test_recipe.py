"""A recipe is layered as documented, and what a run resolved is a recipe that gives the same run."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from support.commands import QUICKSTART
from support.recipe_fields import leaves

from megatron_fork.config import (
    RENAMED,
    RunConfig,
    differences,
    load_config,
    to_yaml,
)
from megatron_fork.errors import ConfigError
from megatron_fork.run.identity import fingerprint, former_fingerprints

PROJECT = Path(__file__).parent.parent.parent
MODEL = {"model": {"path": "somewhere"}}


def write(path: Path, tree: dict) -> Path:
    path.write_text(yaml.safe_dump(tree))
    return path


def test_every_shipped_recipe_loads() -> None:
    recipes = sorted((PROJECT / "examples").rglob("*.yaml"))
    assert QUICKSTART in recipes
    for recipe in recipes:
        load_config(recipe)


def test_resolved_is_a_recipe_of_the_same_run(tmp_path: Path) -> None:
    config = load_config(
        QUICKSTART,
        ["seed=5", "selection.preset=trl", "objective.overlong.cache=7", "model.hf_config.num_hidden_layers=4"],
    )
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    assert load_config(resolved) == config
    assert differences(resolved.read_text(), config) == []


def test_precedence(tmp_path: Path) -> None:
    write(tmp_path / "low.yaml", {**MODEL, "seed": 1, "train": {"steps": 1, "prompts_per_step": 64}})
    high = write(tmp_path / "high.yaml", {"base": "low.yaml", "seed": 2, "train": {"steps": 2}})
    config = load_config(high, ["train.steps=3"])
    assert (config.seed, config.train.steps, config.train.prompts_per_step) == (2, 3, 64)
    assert config.train.prompts_per_mini_batch == 32


@pytest.mark.parametrize(
    ("preset", "scope", "rule", "denominator"),
    [
        ("paper", "minibatch", "threshold", "selected"),
        ("authors_code", "microbatch", "exact_k", "selected"),
        ("trl", "microbatch_global", "quantile", "all"),
    ],
)
def test_presets_set_their_choices_at_once(
    tmp_path: Path, preset: str, scope: str, rule: str, denominator: str
) -> None:
    recipe = write(tmp_path / "recipe.yaml", {**MODEL, "selection": {"preset": preset}})
    config = load_config(recipe)
    assert (config.selection.scope, config.selection.rule, config.objective.denominator) == (scope, rule, denominator)
    explicit = load_config(recipe, ["selection.rule=exact_k", "objective.denominator=all"])
    assert (explicit.selection.scope, explicit.selection.rule) == (scope, "exact_k")
    assert explicit.objective.denominator == "all"


def test_paper_is_the_default(tmp_path: Path) -> None:
    config = load_config(write(tmp_path / "recipe.yaml", MODEL))
    assert config.selection.preset == "paper"
    assert (config.selection.tokens, config.selection.ratio, config.selection.entropy_policy) == ("top", 0.2, "current")
    objective = config.objective
    assert (objective.clip_low, objective.clip_high, objective.dual_clip) == (0.2, 0.28, 10.0)
    assert (objective.overlong.max_response, objective.overlong.cache) == (20480, 4096)
    assert (config.train.prompts_per_step, config.train.prompts_per_mini_batch) == (512, 32)
    assert (config.optimizer.learning_rate, config.optimizer.warmup_updates) == (1e-6, 10)


def test_differences_name_the_fields(tmp_path: Path) -> None:
    config = load_config(QUICKSTART)
    other = load_config(QUICKSTART, ["selection.ratio=0.3", "train.steps=51"])
    assert differences(to_yaml(config), other) == ["selection.ratio", "train.steps"]


def test_defaults_are_valid() -> None:
    assert RunConfig().selection.scope == "minibatch"


def test_base_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml is not a file"):
        load_config(write(tmp_path / "recipe.yaml", {"base": "absent.yaml"}))


def test_a_run_is_the_same_one_whatever_fields_a_later_version_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(QUICKSTART)
    identity = fingerprint(config, leave_out=("run.",))
    earlier = asdict(RunConfig())
    del earlier["critic"], earlier["data"]["columns"]["solution"]
    of_earlier = asdict(config)
    del of_earlier["critic"], of_earlier["data"]["columns"]["solution"]
    monkeypatch.setattr("megatron_fork.run.identity.asdict", lambda given: of_earlier if given is config else earlier)
    assert fingerprint(config, leave_out=("run.",)) == identity
    monkeypatch.undo()
    for word in ("seed=1", "data.columns.solution=how", "model.hf_config.new=1", "critic.epochs=3"):
        assert fingerprint(load_config(QUICKSTART, [word]), leave_out=("run.",)) != identity


@pytest.mark.parametrize(
    ("recipe", "identity", "formerly"),
    [
        ("quickstart", "0de84d40a95f", ("74a78a6ffaea", "0717d1407fee")),
        ("maths", "64cc6dbd2b22", ("1f1fdc1b40b0", "795d227c204f")),
        ("systems/ppo", "aaa2b583b85e", ("47d3876be57d", "9f533ca50f2a")),
        ("ablations/random20", "ebcb773d433b", ("382b12741d45", "aef47c4deb7b")),
    ],
)
def test_a_recipe_is_the_run_that_it_was(recipe: str, identity: str, formerly: tuple[str, str]) -> None:
    """What commit ca5f2d0 wrote into the manifests of these recipes."""
    config = load_config(PROJECT / "examples" / f"{recipe}.yaml")
    assert fingerprint(config, leave_out=("run.",)) == identity
    assert former_fingerprints(config, leave_out=("run.",)) == formerly


def test_a_resolved_recipe_of_a_former_version_is_read(tmp_path: Path) -> None:
    """Without the fields that came later; whole numbers stand where today's are written with a point."""
    config = load_config(QUICKSTART)
    tree = yaml.safe_load(to_yaml(config))
    del tree["critic"], tree["data"]["columns"]["solution"], tree["rollout"]["probe_limit"]
    tree["rollout"]["temperature"] = 1
    resolved = write(tmp_path / "resolved.yaml", tree)
    assert load_config(resolved) == config
    assert differences(resolved.read_text(), config) == []


@pytest.mark.parametrize(("former", "today"), [("rollout.steps", "train.steps"), ("loop", "train")])
def test_what_has_another_name_today_is_told(
    former: str, today: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a recipe, an override, and in what a run that is to go on has left."""
    monkeypatch.setattr("megatron_fork.config.RENAMED", {former: today})
    named = former if "." in former else f"{former}.steps"
    room, name = named.split(".")
    recipe = write(tmp_path / "old.yaml", {**MODEL, room: {name: 3}})
    for read in (
        lambda: load_config(recipe),
        lambda: load_config(QUICKSTART, [f"{named}=3"]),
        lambda: differences(recipe.read_text(), load_config(QUICKSTART)),
    ):
        with pytest.raises(ConfigError, match=f"^{former} has been renamed") as caught:
            read()
        assert f"write {today}" in caught.value.hint


def test_names_of_today_are_fields() -> None:
    for former, today in RENAMED.items():
        names = {part for name, _ in leaves(RunConfig) for part in (name, name.rpartition(".")[0])}
        assert today in names and former not in names


def test_a_run_that_an_earlier_version_began_goes_on(tmp_path: Path) -> None:
    """What commit e9d3f41 wrote into the manifests of this recipe."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 3\nmodel: {hf_config: {model_type: qwen3}}\n")
    assert "fafffe9081c1" in former_fingerprints(load_config(recipe), leave_out=("run.",))
    other = load_config(recipe, ["data.columns.solution=how"])
    assert "fafffe9081c1" not in former_fingerprints(other, leave_out=("run.",))
