"""`megatron-fork analyze entropy`: the entropy pattern of traces as tables, JSON and figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_fork.cli.guard import Debug, guarded
from megatron_fork.files import path_at_home

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from megatron_fork.analysis import EntropyPattern

TracePlaces = Annotated[
    list[Path],
    typer.Argument(
        parser=path_at_home,
        metavar="TRACES...",
        help="trace files, folders of them, or folders of runs and evaluations",
        show_default=False,
    ),
]
Out = Annotated[Path | None, typer.Option(parser=path_at_home, help="folder for figures and JSON", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
MinimumCount = Annotated[int, typer.Option(help="how often a token must occur to be in the tables", min=1)]
Rows = Annotated[int, typer.Option(help="tokens of each table", min=1)]


def entropy(
    traces: TracePlaces,
    out: Out = None,
    as_json: AsJson = False,
    minimum_count: MinimumCount = 100,
    rows: Rows = 20,
    debug: Debug = False,
) -> None:
    """Distribution, percentiles, tokens with the highest and lowest mean entropy, places, right and wrong responses."""

    def work() -> None:
        show_entropy(traces, out=out, as_json=as_json, minimum_count=minimum_count, rows=rows)

    guarded(work, debug=debug)


def show_entropy(traces: list[Path], *, out: Path | None, as_json: bool, minimum_count: int, rows: int) -> None:
    """Analyse the traces; print tables or JSON, and write figures and JSON to the folder `out` if there is one."""
    from megatron_fork.analysis import entropy_pattern, entropy_record, json_text, save_entropy
    from megatron_fork.traces import open_traces

    pattern = entropy_pattern(open_traces(*traces), minimum_count=minimum_count, rows=max(rows, 60))
    if as_json:
        typer.echo(json_text(entropy_record(pattern)))
    else:
        _print(pattern, console_of(), rows)
    if out is not None:
        written = save_entropy(out, pattern)
        typer.echo(f"wrote {', '.join(path.name for path in written)} to {out}", err=as_json)


def _print(pattern: EntropyPattern, console: Console, rows: int) -> None:
    from rich.text import Text

    everything = pattern.groups["all"]
    of = ", ".join(name for name in pattern.models if name) or "a model that the files do not name"
    temperatures = ", ".join(f"{each:g}" for each in pattern.temperatures)
    console.print(
        Text(f"{everything.tokens:,} tokens of {everything.responses:,} responses, of {of}, temperature {temperatures}")
    )
    if pattern.left_out:
        console.print(f"{pattern.left_out:,} responses without entropies are left out")
    console.print(_distributions(pattern))
    for title, tokens in (("highest mean entropy", pattern.highest), ("lowest mean entropy", pattern.lowest)):
        console.print(table_of(title, ["token", "id", "count", "nats"], [
            [each.text, str(each.token), f"{each.count:,}", f"{each.mean:.4g}"] for each in tokens[:rows]
        ]))  # fmt: skip
    console.print(
        f"{pattern.ranked:,} of {pattern.distinct:,} different tokens occur at least {pattern.minimum_count:,} times"
    )
    groups = [name for name in pattern.positions if name != "all" or len(pattern.positions) != 2]
    tenths = [pattern.positions[name].relative.merged(2).mean for name in groups]
    lines = [
        [f"{10 * number} %", *("" if math.isnan(of[number]) else f"{of[number]:.4f}" for of in tenths)]
        for number in range(len(tenths[0]))
    ]
    console.print(table_of("mean entropy by place in the response", ["from", *groups], lines))


def _distributions(pattern: EntropyPattern) -> Table:
    from megatron_fork.analysis import PAPER_ENTROPY

    lines = [
        [
            name,
            f"{group.responses:,}",
            f"{group.tokens:,}",
            f"{group.mean:.4f}",
            f"{100 * group.low:.2f} %",
            *(f"{group.percentiles[percentile]:.4g}" for percentile in (50.0, 80.0, 90.0, 95.0, 99.0)),
        ]
        for name, group in pattern.groups.items()
    ]
    paper = ["paper", "", "", "", f"{100 * PAPER_ENTROPY['share_below_0.01']:.2f} %", "", f"{PAPER_ENTROPY['p80']}"]
    columns = ["", "responses", "tokens", "mean", "below 0.01", "p50", "p80", "p90", "p95", "p99"]
    return table_of("entropy, nats", columns, [*lines, [*paper, "", "", ""]])


def console_of() -> Console:
    """Of the terminal's width, or wide enough for every table where there is none."""
    from rich.console import Console

    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=160)


def table_of(title: str, columns: list[str], lines: list[list[str]]) -> Table:
    """A table for the terminal; all texts are shown as they are."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.SIMPLE, title_justify="left", title_style="bold", min_width=len(title))
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    for line in lines:
        table.add_row(*map(Text, line))  # text of the traces is no markup
    return table
