"""`megatron-fork analyze lenses`: four signals, and sentence-level anchors, on the same traces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megatron_fork.cli.analyze_entropy import AsJson, console_of, table_of
from megatron_fork.cli.analyze_intervene import TokenBudget
from megatron_fork.cli.analyze_models import Model, Set, quiet_display, traces_to_read
from megatron_fork.cli.guard import Debug, guarded
from megatron_fork.errors import ConfigError
from megatron_fork.files import path_at_home

if TYPE_CHECKING:
    from megatron_fork.analysis import Lenses

_SHOWN = 8


def lenses(
    traces: Annotated[
        Path,
        typer.Argument(
            parser=path_at_home,
            metavar="TRACES",
            help="trace file, folder of them, or folder of a run or an evaluation",
            show_default=False,
        ),
    ],
    model: Model,
    lens: Annotated[str, typer.Option(help="which, with commas: entropy, mi, variance, pruning, anchors")] = (
        "entropy,mi,variance,pruning"
    ),
    answer: Annotated[
        str, typer.Option(help="reference answer whose log-prob counts; {answer} is that of the traces")
    ] = ("{answer}"),
    bridge: Annotated[str, typer.Option(help="text that is read between reasoning and reference answer")] = "",
    answer_begins: Annotated[
        str, typer.Option(help="a response's reasoning ends before the last place of this text", show_default=False)
    ] = "",
    gold: Annotated[str, typer.Option(help="text whose hidden state is the gold answer's, for mi")] = "{answer}",
    mi: Annotated[
        Literal["authors_code", "responses"],
        typer.Option(help="samples of HSIC: coordinates of a state, as in the authors' code, or the responses"),
    ] = "authors_code",
    pruning: Annotated[
        Literal["answer", "chain_and_answer"], typer.Option(help="whose log-prob greedy pruning keeps")
    ] = "answer",
    pruning_step: Annotated[int, typer.Option(help="tokens that go at once; 1 is the paper's order", min=1)] = 1,
    anchor_responses: Annotated[int, typer.Option(help="responses whose sentences are resampled", min=1)] = 8,
    anchor_samples: Annotated[int, typer.Option(help="responses drawn from before each sentence", min=2)] = 16,
    share: Annotated[
        float, typer.Option(help="top share of the tokens whose overlap is counted", min=0.0, max=1.0)
    ] = 0.2,
    limit: Annotated[int | None, typer.Option(help="only so many prompts", min=1, show_default=False)] = None,
    token_budget: TokenBudget = None,
    out: Annotated[
        Path | None, typer.Option(parser=path_at_home, help="folder for values, figure and JSON", show_default=False)
    ] = None,
    settings: Set = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Entropy, mutual-information peaks, cross-rollout variance, greedy pruning and anchors of the same responses, compared."""

    def work() -> None:
        display = quiet_display(as_json=as_json)
        from megatron_fork.analysis import AnswerForm, json_text, lenses_record, save_lenses
        from megatron_fork.run import LENSES, AskedLenses, config_of, look, place_and_checkpoint

        names = [word.strip() for word in lens.split(",") if word.strip()]
        if unknown := [name for name in names if name not in LENSES]:
            raise ConfigError(f"--lens={unknown[0]} is none of {', '.join(LENSES)}", hint="name them with commas")
        if not names:
            raise ConfigError("--lens names no lens", hint=f"name some of {', '.join(LENSES)}, with commas")
        files = traces_to_read([traces])
        place, saved = place_and_checkpoint(model)
        config = config_of(place, ["rollout.mismatch_limit=.inf", *(settings or [])], checkpoint=saved)
        form = AnswerForm(answer, bridge, answer_begins, gold)
        asked = AskedLenses(
            names, form, mi, pruning, pruning_step, anchor_responses, anchor_samples, share, limit, token_budget
        )
        found = look(files, config, asked, display, folder=out or Path("lenses"))
        if as_json:
            typer.echo(json_text(lenses_record(found)))
        else:
            _print(found)
        if out is not None:
            typer.echo(f"wrote {', '.join(path.name for path in save_lenses(out, found))} to {out}", err=as_json)

    guarded(work, debug=debug)


def _print(found: Lenses) -> None:
    console = console_of()
    for each in found.lenses:
        first = found.first_tokens(each.name, least=5, count=_SHOWN)
        lines = [[text, f"{count:,}", f"{place:.3f}"] for text, count, place in first]
        if lines:
            console.print(table_of(f"{each.name}: first tokens of a response", ["token", "count", "mean place"], lines))
    if references := found.reference_tokens(count=_SHOWN):
        lines = [[text, f"{count:,}", f"{mean:.4f}", f"{nats:.4f}"] for text, count, mean, nats in references]
        columns = ["token", "count", "deviation, nats", "entropy, nats"]
        console.print(
            table_of("variance: tokens of the reference answers that depend most on the reasoning", columns, lines)
        )
    if (peaks := found.peak_counts()) is not None:
        console.print(f"mi: {peaks['peaks']:,} of {peaks['tokens']:,} tokens are peaks")
    lines = [
        [
            f"{first}, {second}",
            f"{pair.responses:,}",
            f"{100 * pair.jaccard:.1f} %",
            f"{100 * pair.jaccard_interval[0]:.1f} to {100 * pair.jaccard_interval[1]:.1f}",
            f"{100 * pair.by_chance:.1f} %",
            f"{pair.spearman:+.3f}",
            f"{pair.spearman_interval[0]:+.3f} to {pair.spearman_interval[1]:+.3f}",
        ]
        for (first, second), pair in found.agreements().items()
    ]
    for names, why in found.not_compared().items():
        console.print(f"{', '.join(names)}: not compared, since {why}")
    if not lines:
        return
    columns = ["lenses", "responses", "overlap", "interval", "by chance", "rank correlation", "interval"]
    console.print(table_of(f"agreement, top {100 * found.share:g} % of each response", columns, lines))
