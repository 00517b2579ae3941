"""`megatron-fork analyze ...`: what responses, their entropies and their selected tokens look like, of runs and of any model.

A further command of the group is one import and one `app.command` line here. A folder without a command's name before it
is analysed as what it is: a run's folder gets its report, a model's folder with `--responses` its entropy analysis.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from megatron_fork.cli.analyze_entropy import AsJson, MinimumCount, Out, Rows, entropy
from megatron_fork.cli.analyze_evolution import evolution
from megatron_fork.cli.analyze_intervene import intervene
from megatron_fork.cli.analyze_lenses import lenses
from megatron_fork.cli.analyze_masks import compare_masks
from megatron_fork.cli.analyze_models import Set, rescore, score_responses
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
                known = [name for name in self.list_commands(ctx) if not self.commands[name].hidden]
                ctx.fail(f"no command {args[0]!r}: there are {', '.join(known)}")
            args = [_OF_FOLDER, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=FolderOrCommand,
    no_args_is_help=True,
    help="Entropy patterns of responses. `analyze RUN_FOLDER` writes a run's report again; "
    "`analyze HF_DIR --responses FILE` scores any responses with any model. "
    "A folder that is named like a command: `analyze ./entropy`.",
)


@app.command(_OF_FOLDER, hidden=True)
def of_folder(
    folder: Annotated[
        Path,
        typer.Argument(
            parser=path_at_home,
            metavar="FOLDER",
            help="folder of a run, or with --responses of a model",
            show_default=False,
        ),
    ],
    responses: Annotated[
        Path | None,
        typer.Option(
            parser=path_at_home, help="JSON-lines or Parquet file of prompts and responses", show_default=False
        ),
    ] = None,
    columns: Annotated[
        str, typer.Option(help="prompt=NAME,response=NAME,reward=NAME, if they are not the usual ones")
    ] = "",
    out: Out = None,
    settings: Set = None,
    as_json: AsJson = False,
    minimum_count: MinimumCount = 100,
    rows: Rows = 20,
    debug: Debug = False,
) -> None:
    """Write report.html of a run again; with --responses, the entropies of any responses under a Hugging Face model."""

    def work() -> None:
        if responses is not None:
            score_responses(
                folder,
                responses,
                columns=columns,
                out=out,
                overrides=settings or [],
                as_json=as_json,
                minimum_count=minimum_count,
                rows=rows,
            )
            return
        from megatron_fork.analysis import write_report

        typer.echo(f"report {write_report(folder)}")

    guarded(work, debug=debug)


app.command("report")(show_report)
app.command("entropy")(entropy)
app.command("intervene")(intervene)
app.command("lenses")(lenses)
app.command("rescore")(rescore)
app.command("evolution")(evolution)
app.command("compare-masks")(compare_masks)
