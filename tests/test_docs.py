"""What README, CONTRIBUTING and docs name is there: files, fields of recipes, metrics, commands."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import typer

from megatron_fork import cli
from megatron_fork.config import RunConfig, load_config
from megatron_fork.planning import PEERS
from megatron_fork.recipe import flat, recipe_file

PROJECT = Path(__file__).parent.parent
PACKAGE = PROJECT / "megatron_fork"
TEXTS = [*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")]
CODE = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
# Where a path may begin, besides in the folder of the file that was named last.
ROOTS = (
    PROJECT,
    PACKAGE,
    PROJECT / "docs",
    PROJECT / "benchmarks" / "results",
    PROJECT / "examples",
    PROJECT / "tests",
)
# The last two are mappings, empty by default.
FIELDS = {*dict(flat(asdict(RunConfig()))), "data.generator.parameters", "evaluation.sets"}
ROOMS = {name.partition(".")[0] for name in FIELDS if "." in name}
# Other trainers' names of their fields, some of which begin as a room is called.
OF_PEERS = {entry.theirs for table in PEERS.values() for entry in (*table.counterparts, *table.missing)}
# Of files that a reader writes, or that a run or another project has.
OTHERS = re.compile(
    r"my_|RECIPE|NAME|\bsummary\.md|other\b|resolved\.yaml|held\.txt|latest_checkpointed_iteration\.txt|mistral\.py"
)


def in_code(path: Path) -> Iterator[str]:
    """What stands in backquotes or in an indented or fenced block."""
    text = path.read_text()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    for block in re.findall(r"```(?:\w*)\n(.*?)```", text, flags=re.S):
        yield from block.splitlines()
    yield from (line for line in text.splitlines() if line.startswith("    "))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_files_are_there(path: Path) -> None:
    missing, folders = [], list(ROOTS)
    for piece in in_code(path):
        for named in re.findall(r"(?<![\w./{}*~-])[\w.-]+(?:/[\w.-]+)*\.(?:py|md|sh|txt|yaml)\b(?!\.)", piece):
            found = next((root / named for root in folders if (root / named).is_file()), None)
            if found is not None:
                folders = [*ROOTS, found.parent]
            elif not any(PACKAGE.rglob(named)) and not OTHERS.search(named):
                missing.append(named)
    assert not missing


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_fields_are_there(path: Path) -> None:
    missing = []
    for piece in in_code(path):
        for room, rest in re.findall(rf"(?<![\w./-])({'|'.join(sorted(ROOMS))})((?:\.[a-z]\w*)+)(?![\w/(])", piece):
            name = room + rest
            is_there = name in FIELDS or any(field.startswith(f"{name}.") for field in FIELDS)
            is_there = is_there or (path.name == "coming_from.md" and any(each.startswith(name) for each in OF_PEERS))
            is_function = re.search(rf"\ndef {name.rpartition('.')[2]}\(", CODE)
            if not (
                is_there
                or is_function
                or name.startswith(("model.hf_config.", "model.safetensors", "evaluation.json", "evaluation.md"))
            ):
                missing.append(name)
    assert not missing


def commands_of(app: typer.Typer, before: str = "") -> set[str]:
    names = {before + (each.name or each.callback.__name__).replace("_", "-") for each in app.registered_commands}
    for group in app.registered_groups:
        names |= {before + group.name, *commands_of(group.typer_instance, f"{before}{group.name} ")}
    return names


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_commands_are_there(path: Path) -> None:
    known, missing = commands_of(cli.app), []
    for piece in in_code(path):
        for words in re.findall(r"(?:^|[\s(])(?:megatron-fork|-m megatron_fork) ([a-z-]+(?: [a-z-]+)?)", piece):
            first, _, second = words.partition(" ")
            is_group = any(name.startswith(f"{first} ") for name in known)
            if first not in known or (is_group and second and f"{first} {second}" not in known):
                missing.append(words)
    assert not missing


# As a shell sees them: after variables, launchers, and a path.
COMMAND = re.compile(
    r"\s*(?:\w+=\S+ )*(?:srun \S+ |torchrun .*?-m )?(?:\S*/)?(?:megatron-fork|megatron_fork|python -m megatron_fork)\s+(.*)"
)
PLACEHOLDER = re.compile(r"[A-Z]{2,}")


def command_lines(path: Path) -> Iterator[list[str]]:
    """The words of every command line that has more than the command's name; `[what may be left out]` is left out."""
    text = path.read_text().replace("\\\n", " ")
    rest = re.sub(r"```.*?```", "", text, flags=re.S)
    lines = [line for block in re.findall(r"```\w*\n(.*?)```", text, flags=re.S) for line in block.splitlines()]
    lines += [line for line in rest.splitlines() if line.startswith("    ")] + re.findall(r"`([^`\n]+)`", rest)
    for line in lines:
        if found := COMMAND.match(line):
            words = shlex.split(re.sub(r"\s\[[^\]=]*\]", "", found[1]), comments=True)
            yield ["80" if word == "GIB" else word for word in words]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_command_lines_are_taken(path: Path) -> None:
    """Their options and arguments are those of the command; overrides of a recipe that is here are read."""
    root: Any = typer.main.get_command(cli.app)
    for line in command_lines(path):
        command, words = root, list(line)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        if not words or command is root:
            continue
        context = command.make_context("megatron-fork", list(words))
        recipe = recipe_file(Path(str(context.params.get("recipe"))))
        if not recipe.is_file():
            recipe = PROJECT / "examples" / "quickstart.yaml"
        overrides = [word for word in context.params.get("overrides") or [] if not PLACEHOLDER.search(word)]
        load_config(recipe, ["model.path=FOLDER", *overrides] if recipe.stem in ("paper", "maths") else overrides)


METRICS = re.compile(
    r"(?<![\w./-])(?:selection|objective|mismatch|rollout|responses|entropy|critic|time|rewards|actor|perf|train|"
    r"response_length|timing_s)/[a-z]\w*(?:/[a-z]\w*)?(?![\w./-])"
)
# Of a peer, and said to be without a counterpart.
ABSENT = {"perf/mfu/actor"}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_metrics_are_there(path: Path) -> None:
    """A name stands in the package as it is, or is put together of its room and the rest."""
    missing = []
    for piece in in_code(path):
        for name in METRICS.findall(piece):
            literals = (f'"{name}"', f'"{name.partition("/")[2]}"')
            is_path = any((root / name).exists() for root in ROOTS)
            if name not in ABSENT and not is_path and not any(literal in CODE for literal in literals):
                missing.append(name)
    assert not missing
