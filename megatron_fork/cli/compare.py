"""`megatron-fork compare A B`: what changed between two evaluations, problem by problem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from megatron_fork.cli.guard import Debug, guarded
from megatron_fork.errors import EvaluationError
from megatron_fork.files import path_at_home, replace_file

Evaluated = typer.Argument(parser=path_at_home, metavar="EVALUATION", help="folder of `evaluate`", show_default=False)


def compare(
    first: Annotated[Path, Evaluated],
    second: Annotated[Path, Evaluated],
    seed: Annotated[int, typer.Option(help="of the intervals", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, with every flipped problem")] = False,
    out: Annotated[
        Path | None,
        typer.Option(parser=path_at_home, metavar="FILE", help="also write it: .json or .md", show_default=False),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show paired differences of two evaluations of the same prompts, with intervals, and the problems that flipped."""

    def work() -> None:
        from megatron_fork.evaluation import compare_evaluations, comparison_markdown, read_evaluation

        if out is not None and out.suffix not in (".json", ".md"):
            raise EvaluationError(f"--out={out} is neither .json nor .md", hint="its suffix says what is written")
        found = compare_evaluations(read_evaluation(first), read_evaluation(second), seed=seed)
        as_text = json.dumps(found, indent=2) + "\n"
        table = comparison_markdown(found)
        if out is not None:
            try:
                replace_file(out, as_text if out.suffix == ".json" else table)
            except OSError as error:
                raise EvaluationError(
                    f"--out={out} cannot be written: {error.strerror or error}",
                    hint="name a file in a folder that exists",
                ) from error
        typer.echo(as_text if as_json else table, nl=False)

    guarded(work, debug=debug)
