"""`megatron-fork data ...`: remove duplicates and evaluation questions from prompt files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megatron_fork.cli.guard import Debug, guarded
from megatron_fork.files import path_at_home

if TYPE_CHECKING:
    from megatron_fork import data

app = typer.Typer(no_args_is_help=True, help="Remove duplicates and evaluation questions from prompt files.")

Rows = Annotated[str, typer.Argument(help="file or dataset folder, or PRESET:PATH", show_default=False)]
Out = Annotated[
    Path, typer.Argument(parser=path_at_home, metavar="OUT", help="JSON lines to write", show_default=False)
]
PromptColumn = Annotated[str | None, typer.Option(help="column of the question; dots lead into structures")]
AnswerColumn = Annotated[str | None, typer.Option(help="column of the answer")]
Split = Annotated[str | None, typer.Option(help="split of a folder that has several")]
Subset = Annotated[str | None, typer.Option(help="subset of a folder that has several; * for all of them together")]


@app.command()
def dedupe(
    rows: Rows,
    out: Out,
    prompt: PromptColumn = None,
    answer: AnswerColumn = None,
    split: Split = None,
    subset: Subset = None,
    conflicts: Annotated[
        Literal["drop", "first"],
        typer.Option(help="for a question with different answers: drop all its rows, or keep the first"),
    ] = "drop",
    debug: Debug = False,
) -> None:
    """Write the first row of every question; case, spacing and punctuation are ignored in the comparison."""

    def work() -> None:
        from megatron_fork import data

        source = data.named_file(rows, split, _columns(prompt, answer), subset)
        typer.echo(data.summary(data.deduplicate(source, out, conflicts=conflicts)))

    guarded(work, debug=debug)


@app.command()
def decontaminate(
    rows: Rows,
    out: Out,
    against: Annotated[list[str], typer.Option(help="evaluation set: a file or folder, or PRESET:PATH; repeatable")],
    ngram: Annotated[int, typer.Option(help="words in a row that make a row contaminated")] = 13,
    removed: Annotated[
        Path | None, typer.Option(parser=path_at_home, metavar="PATH", help="JSON lines of what was removed, and why")
    ] = None,
    prompt: PromptColumn = None,
    answer: AnswerColumn = None,
    against_prompt: Annotated[
        str | None,
        typer.Option(help="column of the question in the evaluation sets; --prompt by default, or a preset's"),
    ] = None,
    split: Split = None,
    subset: Subset = None,
    debug: Debug = False,
) -> None:
    """Write the rows that share no long run of words with a question of an evaluation set."""

    def work() -> None:
        from megatron_fork import data

        def named(file: str, column: str | None, split: str | None = None, subset: str | None = None) -> data.RowFile:
            """A named answer column must exist, although only questions are compared."""
            found = data.named_file(file, split, _columns(column, answer), subset)
            return replace(found, must_answer=answer is not None)

        source = named(rows, prompt, split, subset)
        sets = [
            data.named_file(each, None, _columns(against_prompt, None))
            if against_prompt or data.has_preset(each)
            else named(each, prompt)
            for each in against
        ]
        typer.echo(data.summary(data.decontaminate(source, out, sets, ngram=ngram, removed=removed)))

    guarded(work, debug=debug)


def _columns(prompt: str | None, answer: str | None) -> data.Columns | None:
    """The columns that were named; None if none was, so that a preset's columns are used."""
    from megatron_fork.data import Columns

    named = {name: value for name, value in (("prompt", prompt), ("answer", answer)) if value is not None}
    return Columns(**named) if named else None
