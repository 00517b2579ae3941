"""Write docs/cli.md from the commands as they are declared; `tests/tools/test_book.py` compares.

python tools/cli_reference.py
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

import typer

from megatron_fork.cli import app

DOCS = Path(__file__).parent.parent / "docs"
HEAD = """# Commands

Made by `python tools/cli_reference.py` from the commands themselves; a test compares. `megatron-fork COMMAND --help` prints
the same.

A recipe is a YAML file or the name of one that comes with the package, such as `quickstart`; an override is `field=value`
with a field of [config.md](config.md). An error is one line and a way out; `--debug` shows the traceback.

| exit code | meaning |
|---|---|
| 0 | done, and it is right |
| 1 | what the command names, or the run, failed |
| 2 | the recipe, an override or the command line cannot be used |
| 75 | asked to stop by a scheduler's signal, or a rank was lost: the state is saved, start it again |
| 130 | Ctrl-C: the state is saved |
"""
_KINDS = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "",
    "Path": "path",
    "path": "path",
    "list[str]": "text, may be repeated",
    "list[int]": "whole number, may be repeated",
    "list[Path]": "path, may be repeated",
}


def markdown() -> str:
    """The reference: a section a command, a row an argument or option."""
    return HEAD + "".join(_section(typer.main.get_command(app), "megatron-fork"))


def _section(command: Any, words: str) -> Iterator[str]:
    if " " in words:
        yield f"\n## `{words}`\n\n{_text(command.help)}\n"
        if rows := [_row(parameter) for parameter in command.params if parameter.name != "help"]:
            yield "\n| | takes | default | meaning |\n|---|---|---|---|\n" + "".join(rows)
    for name, each in getattr(command, "commands", {}).items():
        if not each.hidden:
            yield from _section(each, f"{words} {name}")


def _row(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    name = ", ".join([*parameter.opts, *parameter.secondary_opts]) if is_option else parameter.name.upper()
    takes = "" if getattr(parameter, "is_flag", False) else parameter.metavar or _kind(parameter)
    limits = [limit for limit in (parameter.min, parameter.max) if limit is not None]
    if limits:
        takes += f" from {limits[0]:g}" + (f" to {limits[1]:g}" if len(limits) == 2 else "")
    shown = "" if parameter.default in (None, False) else f"`{parameter.default}`"
    cells = (f"`{name}`", takes, shown, _text(parameter.help) + (" (needed)" if parameter.required else ""))
    return f"| {' | '.join(_cell(each) for each in cells)} |\n"


def _kind(parameter: Any) -> str:
    choices = parameter.type_descriptor.choices
    return " or ".join(f"`{each}`" for each in choices) if choices else _KINDS[parameter.bare_type()]


def _text(text: str | None) -> str:
    return " ".join(cleandoc(text or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def main() -> None:
    (DOCS / "cli.md").write_text(markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
