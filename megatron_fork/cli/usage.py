"""Words that no command takes, such as an unknown option or a number out of range, are refused as everything else is.

Typer would draw a box around its own text, which names neither the value nor, where it is known, the way out.
"""

from __future__ import annotations

from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from megatron_fork.cli.guard import tell
from megatron_fork.errors import ConfigError, shown


class Commands(TyperGroup):
    """The commands of `megatron-fork`, with those below them."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Read what stands before the command's name."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except typer.TyperException as error:
            raise _end_of(error, info_name or "megatron-fork") from None

    def invoke(self, ctx: Any) -> Any:
        """Read the command's own words and run it."""
        try:
            return super().invoke(ctx)
        except typer.TyperException as error:
            raise _end_of(error, ctx.command_path) from None


def _end_of(error: typer.TyperException, command: str) -> Exception:
    """The end of the program, after the refusal has been printed; a call without words is answered with the help, by typer."""
    if type(error).__name__ == "NoArgsIsHelpError":  # which typer has no public name for
        return error
    refused = usage_error(error, command)
    tell(refused, debug=False)
    return typer.Exit(refused.exit_code)


def usage_error(error: typer.TyperException, command: str) -> ConfigError:
    """Typer's error in one line with the way out; `command`: as it was called, where the error does not know it."""
    about = vars(error)  # what it is about: each kind of error has other fields
    context, parameter = about.get("ctx"), about.get("param")
    if context is not None:  # a hidden command is not typed: its group's name stands for it
        command = (context.parent if context.command.hidden else context).command_path
    help_of = f"`{command} --help` shows what can be given"
    if near := about.get("possibilities"):
        return ConfigError(_begun_small(error.message), hint=f"did you mean {' or '.join(sorted(near))}? {help_of}")
    if isinstance(error.__cause__, ValidationError) and parameter is not None:
        problem = error.__cause__.errors(include_url=False)[0]
        option, value = parameter.get_error_hint().strip("'"), shown(problem["input"])
        wrong = _wrong(problem["msg"]).removeprefix(f"'{value}' ")
        return ConfigError(f"{option}={value} {wrong}", hint=help_of)
    said, _, more = error.format_message().partition(". ")
    return ConfigError(_begun_small(said.rstrip(".")), hint=" ".join(filter(None, [more, help_of])))


def _wrong(message: str) -> str:
    """Pydantic's words for a value, as they follow the value."""
    said = message.removeprefix("Value error, ").rstrip(".")
    wanted = said.removeprefix("Input should be ")
    if wanted == said:
        return said
    wanted = wanted.partition(",")[0].replace("greater than or equal to", "at least")
    return f"is not {wanted.replace('less than or equal to', 'at most')}"


def _begun_small(text: str) -> str:
    return text[:1].lower() + text[1:]
