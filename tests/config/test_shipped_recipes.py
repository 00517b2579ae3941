"""A recipe that comes with the package is found by its name from anywhere; a file of that name at hand comes first."""

from pathlib import Path

import pytest
from support.commands import PROJECT

from megatron_fork.config import load_config
from megatron_fork.errors import ConfigError
from megatron_fork.recipe import alike, recipe_file, shipped_recipes

EXAMPLES = PROJECT / "examples"
NAMES = sorted(path.relative_to(EXAMPLES).with_suffix("").as_posix() for path in EXAMPLES.rglob("*.yaml"))


def test_all_come_with_the_package() -> None:
    assert sorted(shipped_recipes()) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("written", ["{}", "examples/{}", "examples/{}.yaml"])
def test_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, written: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_file(Path(written.format(name))) == EXAMPLES / f"{name}.yaml"


def test_read_as_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "qwen3-8b/dapo"):  # the latter extends another
        assert load_config(Path(name)) == load_config(EXAMPLES / f"{name}.yaml")


def test_a_file_at_hand_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "quickstart"
    own.write_text("seed: 7\nmodel: {path: FOLDER}\n")
    assert load_config(Path("quickstart")).seed == 7


def test_a_folder_of_that_name_is_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert load_config(Path("quickstart")) == load_config(EXAMPLES / "quickstart.yaml")


def test_whoever_names_a_file_means_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for written in ("quickstart.yaml", "./quickstart.yaml", "elsewhere/quickstart.yaml"):
        with pytest.raises(ConfigError, match="is not a file") as found:
            load_config(Path(written))
        assert "elsewhere" in written or "quickstart" in (found.value.hint or "")


@pytest.mark.parametrize(
    ("written", "meant"),
    [("quikstart", "quickstart"), ("qwen3-8b/top20.yaml", "qwen3-8b/top20"), ("examples/pape.yaml", "paper")],
)
def test_a_mistyped_name_gets_those_alike(written: str, meant: str) -> None:
    assert meant in alike(Path(written))
    with pytest.raises(ConfigError, match=r"none of this name comes with the package") as found:
        load_config(Path(written))
    assert meant in (found.value.hint or "")


@pytest.mark.parametrize("written", ["", ".", "..", "/", "../quickstart", "examples", "examples/", "a/b/c/d"])
def test_what_names_no_recipe_is_one_line(written: str) -> None:
    with pytest.raises(ConfigError):
        load_config(Path(written))
