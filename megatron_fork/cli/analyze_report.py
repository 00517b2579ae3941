"""`megatron-fork analyze report`: the report page over runs, evaluations and traces, and its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_fork.cli.guard import Debug, guarded
from megatron_fork.files import path_at_home

Places = Annotated[
    list[Path],
    typer.Argument(
        parser=path_at_home,
        metavar="RUN|EVALUATION|TRACES...",
        help="folders of a run or of evaluations, and trace files; at most one run",
        show_default=False,
    ),
]


def show_report(
    places: Places,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path_at_home,
            metavar="FILE",
            help="the page; by default report.html in the folder, or beside a file with its name",
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            parser=path_at_home, metavar="FOLDER", help="save the plots there too, as SVG and PNG for publication"
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write one page that needs no network: curves, entropy plots, token table, and transcripts coloured by entropy."""

    def work() -> None:
        from megatron_fork.analysis import write_page

        typer.echo(f"report {write_page(places, out or _beside(places), figures=figures)}")
        if figures is not None:
            typer.echo(f"figures {figures}")

    guarded(work, debug=debug)


def _beside(places: list[Path]) -> Path:
    if len(places) > 1:
        return Path("report.html")
    return places[0] / "report.html" if places[0].is_dir() else places[0].with_suffix(".html")
