"""`megatron-fork analyze ...`: what responses, their entropies and their selected tokens look like, of runs and of any model.

A further command of the group is one import and one `app.command` line here. A folder without a command's name before it
is analysed as what it is: a run's folder gets its report, a model's folder with `--responses` its entropy analysis.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from megatron_fork.cli.analyze_report import show_report
from megatron_fork.cli.guard import Debug, guarded
from megatron_fork.files import path_at_home

_OF_FOLDER = "of-folder"


class FolderOrCommand(TyperGroup):
    """A group whose first word may be a folder instead of a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the command for folders before words that begin with no command."""
        if args and args[0] not in self.commands and args[0] != "--help":
            if not any(word.startswith("-") for word in args[:2]) and len(args) > 1:  # two words, so no folder alone
                ctx.fail(f"No command {args[0]!r}: there are {', '.join(self.list_commands(ctx))}")
            args = [_OF_FOLDER, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=FolderOrCommand,
    no_args_is_help=True,
    help="Entropy patterns of responses. `analyze RUN_FOLDER` writes a run's report again. "
    "A folder that is named like a command: `analyze ./entropy`.",
)


@app.command(_OF_FOLDER, hidden=True)
def of_folder(
    folder: Annotated[
        Path, typer.Argument(parser=path_at_home, metavar="FOLDER", help="folder of a run", show_default=False)
    ],
    debug: Debug = False,
) -> None:
    """Write report.html of a run again from the files in its run folder."""

    def work() -> None:
        from megatron_fork.analysis import write_report

        typer.echo(f"report {write_report(folder)}")

    guarded(work, debug=debug)


app.command("report")(show_report)
