"""A data-set folder with several subsets is asked which, by its README.md or its folders; what it declares is what is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_fork.data import PRESETS, DataConfig, load_prompts
from megatron_fork.data.generated import tokenizer_of_task
from megatron_fork.data.overlap import named_file
from megatron_fork.data.rows import data_files, read_rows
from megatron_fork.errors import ConfigError, DataError


def folder(at: Path, *names: str, readme: str = "") -> Path:
    """Files with one row each, which has the file's name."""
    for name in names:
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_text(json.dumps({"prompt": name, "answer": name}) + "\n")
    if readme:
        (at / "README.md").write_text(readme)
    return at


def names(source: Path, split: str | None = None, subset: str | None = None) -> list[str]:
    return [row["prompt"] for _, row in read_rows(source, split, subset)]


DECLARED = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*.jsonl
- config_name: socratic
  data_files:
  - split: train
    path:
    - "socratic/train-0.jsonl"
    - "socratic/more.jsonl"
---
# A set
"""
FILES = ("main/train-0.jsonl", "main/test-0.jsonl", "socratic/train-0.jsonl", "socratic/more.jsonl", "notes/x.jsonl")


def test_subsets_of_a_readme(tmp_path: Path) -> None:
    source = folder(tmp_path, *FILES, readme=DECLARED)
    for split in (None, "train"):
        with pytest.raises(DataError, match=r"has several subsets; there are: main, socratic") as caught:
            data_files(source, split)
        assert "data.subset" in caught.value.hint and "'*'" in caught.value.hint
    with pytest.raises(DataError, match=r"no subset 'algebra'; there are: main, socratic"):
        data_files(source, None, "algebra")
    assert names(source, "train", "main") == ["main/train-0.jsonl"]
    assert names(source, "test", "main") == ["main/test-0.jsonl"]
    assert names(source, None, "socratic") == ["socratic/train-0.jsonl", "socratic/more.jsonl"]
    assert names(source, "train", "*") == ["main/train-0.jsonl", "socratic/train-0.jsonl", "socratic/more.jsonl"]


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("data_files: a/*.jsonl", ["a/train.jsonl"]),
        ("data_files: [a/train.jsonl, b/*]", ["a/train.jsonl", "b/train.jsonl"]),
        ("data_files: {train: b/train.jsonl}", ["b/train.jsonl"]),
        ("data_dir: b", ["b/train.jsonl"]),
        ("data_files: '**/*.jsonl'", ["a/train.jsonl", "b/train.jsonl", "train.jsonl"]),
        ("data_dir: a\n  data_files: '*.jsonl'", ["a/train.jsonl"]),
    ],
)
def test_forms_of_a_declaration(tmp_path: Path, declared: str, expected: list[str]) -> None:
    """One subset needs no name, and only its files are read."""
    readme = f"---\nconfigs:\n- config_name: default\n  {declared}\n---\n"
    source = folder(tmp_path, "a/train.jsonl", "b/train.jsonl", "train.jsonl", readme=readme)
    assert sorted(names(source)) == expected == sorted(names(source, "train", "default"))


@pytest.mark.parametrize(
    ("files", "subsets"),
    [
        (("main/train-0.jsonl", "socratic/train-0.jsonl"), "main, socratic"),
        (("data/en/train.jsonl", "data/de/train.jsonl"), "de, en"),
        (("train.jsonl", "hard/train.jsonl"), "(none), hard"),
    ],
)
def test_subsets_by_folder(tmp_path: Path, files: tuple[str, ...], subsets: str) -> None:
    source = folder(tmp_path, *files, readme="# no declaration")
    with pytest.raises(DataError) as caught:
        data_files(source, "train")
    assert f"has several subsets; there are: {subsets}" in caught.value.message
    assert sorted(names(source, "train", "*")) == sorted(files)
    last = subsets.split(", ")[1]
    assert names(source, None, last) == [name for name in files if f"{last}/" in name]


@pytest.mark.parametrize(
    "files",
    [
        ("data/train-0.jsonl", "data/train-1.jsonl"),
        ("train/0.jsonl", "train/1.jsonl"),
        ("0.jsonl", "1.jsonl"),
        ("main/0.jsonl",),
    ],
)
def test_one_subset_needs_no_choice(tmp_path: Path, files: tuple[str, ...]) -> None:
    assert names(folder(tmp_path, *files)) == list(files) == names(tmp_path, None, "*")


def test_one_set_in_two_formats_is_not_read_twice(tmp_path: Path) -> None:
    source = folder(tmp_path, "train.jsonl", "train.json", "test.jsonl")
    with pytest.raises(DataError, match=r"several formats.*: train\.json, train\.jsonl") as caught:
        data_files(source, "train")
    assert caught.value.hint
    assert names(source, "test") == ["test.jsonl"]


def test_what_was_not_downloaded_is_no_subset(tmp_path: Path) -> None:
    source = folder(tmp_path, *FILES[:2], readme=DECLARED)
    assert names(source, "train") == ["main/train-0.jsonl"]
    with pytest.raises(DataError, match=r"no subset 'socratic'; there are: main"):
        data_files(source, None, "socratic")
    folder(tmp_path, FILES[2])
    with pytest.raises(DataError, match=r"names the data files socratic/more\.jsonl, but .* has none of them"):
        data_files(source, None, "socratic")


@pytest.mark.parametrize(
    ("readme", "message"),
    [
        ("---\nconfigs: [\n---\n", r"README\.md has no readable YAML"),
        ("---\nconfigs:\n- name: a\n---\n", r"README\.md has configs that are not readable"),
        ("---\nconfigs:\n- config_name: a\n  data_files: ../../*.jsonl\n---\n", r"outside of its folder"),
        ("---\nconfigs:\n- config_name: a\n  data_files: /etc/*.jsonl\n---\n", r"outside of its folder"),
        ("---\nconfigs:\n- config_name: a\n  data_dir: ../b\n---\n", r"outside of its folder"),
    ],
)
def test_what_a_readme_may_not_say(tmp_path: Path, readme: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        data_files(folder(tmp_path, "a.jsonl", readme=readme))
    assert caught.value.hint


@pytest.mark.parametrize("name", ["split", "subset"])
def test_one_file_has_neither(name: str, tmp_path: Path) -> None:
    """What a recipe says of a folder would be ignored of a file; a preset's own, which knows both, is."""
    folder(tmp_path, "train.jsonl")
    source = str(tmp_path / "train.jsonl")
    with pytest.raises(ConfigError, match=rf"^data\.{name}=test with data\.source=.*train\.jsonl, which is one file"):
        load_prompts(DataConfig(source=source, **{name: "test"}), tokenizer_of_task("reach"))
    of_preset = PRESETS["math"]["data"][name]
    for config in (DataConfig(source=source, preset="math", **{name: of_preset}), DataConfig(source=source)):
        with pytest.raises(DataError, match=r"train\.jsonl"):  # it has one row, and not the preset's columns
            load_prompts(config, tokenizer_of_task("reach"))


def test_the_recipe_and_the_tools_choose(tmp_path: Path) -> None:
    from support.prompt_files import TOKENIZER

    source = folder(tmp_path, *FILES, readme=DECLARED)
    prompts = load_prompts(DataConfig(source=str(source), subset="socratic", held_out=1), TOKENIZER)
    assert prompts.counts.kept == 2
    assert [question for _, question, _, _ in named_file(str(source), "train", None, "main").questions()] == [FILES[0]]
    with pytest.raises(DataError, match="several subsets"):
        list(named_file(str(source), "train", None).questions())
