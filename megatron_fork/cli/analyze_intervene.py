"""`megatron-fork analyze intervene`: accuracy when forks and other tokens are drawn at different temperatures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_fork.cli.analyze_entropy import AsJson, console_of, table_of
from megatron_fork.cli.analyze_models import Model, Set, quiet_display
from megatron_fork.cli.evaluate import Drawn, Longest, Samples, Seed
from megatron_fork.cli.guard import Debug, guarded
from megatron_fork.errors import ConfigError
from megatron_fork.files import path_at_home
from megatron_fork.serving import EntropyTemperature

if TYPE_CHECKING:
    from megatron_fork.analysis import CellResult, Intervention

TokenBudget = Annotated[int | None, typer.Option(help="stop before this many tokens", min=1, show_default=False)]


def intervene(
    model: Model,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="[NAME=]FILE", help="file of prompts; by default the held-out prompts", show_default=False
        ),
    ] = None,
    high: Annotated[str, typer.Option(help="temperatures above the threshold; 0: the most likely token")] = "0,0.5,1,2",
    low: Annotated[str, typer.Option(help="temperatures up to the threshold")] = "0,0.5,1",
    paper: Annotated[
        bool, typer.Option(help="also the paper's lines: one at 1, the other at 0, .05, .3, .6, 1, 2, 3, 5")
    ] = False,
    threshold: Annotated[
        float, typer.Option(help="nats; the paper's is the 80th percentile of Qwen3-8B", min=0.0)
    ] = EntropyTemperature.threshold,
    samples: Samples = None,
    limit: Annotated[int | None, typer.Option(help="only the first prompts", min=1, show_default=False)] = None,
    longest: Longest = None,
    seed: Seed = None,
    token_budget: TokenBudget = None,
    out: Annotated[
        Path,
        typer.Option(parser=path_at_home, help="folder of traces, figures and JSON; an unfinished one is gone on with"),
    ] = Path("intervention"),
    settings: Set = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Accuracy over temperatures at forks and elsewhere, as in arXiv 2506.01939, 2.2. Also under torchrun."""

    def work() -> None:
        grid = _temperatures("--high", high), _temperatures("--low", low)
        if not math.isfinite(threshold):
            raise ConfigError(f"--threshold={threshold} is not finite", hint="give nats, such as 0.672")
        display = quiet_display(as_json=as_json)
        from megatron_fork.run import AskedCells, is_first_rank, place_and_checkpoint
        from megatron_fork.run import intervene as draw_cells

        place, saved = place_and_checkpoint(model)
        sets = [prompts] if prompts else []
        drawn = Drawn(place, settings or [], sets, samples, longest, None, None, seed, out, saved, "analyze intervene")
        config, chosen = drawn.settings()
        from megatron_fork.analysis import cells_of, intervention_record, json_text, save_intervention

        cells = cells_of(*grid, paper=paper)
        found = draw_cells(config, AskedCells(cells, threshold, chosen[-1], out, limit, token_budget), display)
        if not is_first_rank():
            return
        if as_json:
            typer.echo(json_text(intervention_record(found)))
        else:
            _print(found)
        if found.results:
            written = save_intervention(out, found)
            typer.echo(f"wrote {', '.join(path.name for path in written)} to {out}", err=as_json)

    guarded(work, debug=debug)


def _temperatures(option: str, text: str) -> list[float]:
    try:
        found = [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        found = []
    if not found or not all(math.isfinite(each) and each >= 0.0 for each in found):
        raise ConfigError(f"{option}={text} is not a list of temperatures", hint=f"write {option}=0,0.5,1,2")
    return found


def _print(found: Intervention) -> None:
    console = console_of()
    title = f"temperature above {found.threshold:g} nats, and up to it; mean reward, intervals of 95 % over prompts"
    columns = ["above", "up to", "accuracy", "interval", "against 1, 1", "interval", "tokens", "cut"]
    console.print(table_of(title, columns, [_line(found, result) for result in found.results]))
    if found.left_out:
        names = ", ".join(f"({cell.high:g}, {cell.low:g})" for cell in found.left_out)
        console.print(f"left out, since they might have exceeded the token budget: {names}")


def _line(found: Intervention, result: CellResult) -> list[str]:
    difference = found.difference(result)
    return [
        f"{result.cell.high:g}",
        f"{result.cell.low:g}",
        f"{100 * result.accuracy:.2f}",
        _interval(result.interval),
        "" if difference is None else f"{100 * difference[0]:+.2f}",
        "" if difference is None else _interval(difference[1]),
        f"{result.response_tokens:.1f}",
        f"{100 * result.cut:.1f} %",
    ]


def _interval(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}"
