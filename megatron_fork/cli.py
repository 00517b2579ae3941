"""The command line. Exit code 0 only on success; an error is one line and a hint, a traceback only with --debug."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megatron_fork import convert_commands
from megatron_fork.errors import MegatronForkError
from megatron_fork.version import __version__

if TYPE_CHECKING:
    from megatron_fork import data

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(convert_commands.app, name="convert")

data_app = typer.Typer(no_args_is_help=True, help="Prompt files: duplicates, and questions of evaluation sets.")
app.add_typer(data_app, name="data")

Recipe = Annotated[Path, typer.Argument(help="YAML recipe, such as examples/quickstart.yaml", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="dotted overrides: selection.tokens=all train.steps=10", show_default=False)
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="print the resolved recipe and stop")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


@app.command()
def train(recipe: Recipe, overrides: Overrides = None, print_config: PrintConfig = False, debug: Debug = False) -> None:
    """Reinforcement learning: warm start where the recipe asks for one, then the loop. Also under torchrun."""
    _run_recipe("train", recipe, overrides, print_config=print_config, debug=debug)


@app.command()
def sft(recipe: Recipe, overrides: Overrides = None, print_config: PrintConfig = False, debug: Debug = False) -> None:
    """Only the warm start: cross-entropy on the recipe's demonstrations; leaves a Hugging Face model folder."""
    _run_recipe("sft", recipe, overrides, print_config=print_config, debug=debug)


@app.command()
def analyze(
    run_folder: Annotated[Path, typer.Argument(help="folder of a run", show_default=False)], debug: Debug = False
) -> None:
    """Write report.html of a run again, from what the run folder holds."""

    def work() -> None:
        from megatron_fork.analysis import write_report

        typer.echo(f"report {write_report(run_folder)}")

    guarded(work, debug=debug)


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="recipe to check", show_default=False)] = None,
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """What this machine offers, and whether a recipe would start here; nothing is allocated for it."""

    def work() -> None:
        from megatron_fork.console import quiet_libraries

        quiet_libraries()
        from rich.console import Console

        from megatron_fork import distributed
        from megatron_fork.config import load_config
        from megatron_fork.doctor import diagnose

        console = Console(highlight=False, quiet=distributed.rank() != 0)
        diagnose(load_config(recipe, overrides or []) if recipe else None, console)

    guarded(work, debug=debug)


Rows = Annotated[str, typer.Argument(help="file or dataset folder, or PRESET:PATH", show_default=False)]
Out = Annotated[Path, typer.Argument(help="JSON lines to write", show_default=False)]
PromptColumn = Annotated[str | None, typer.Option(help="column of the question; dots lead into structures")]
AnswerColumn = Annotated[str | None, typer.Option(help="column of the answer")]
Split = Annotated[str | None, typer.Option(help="of a folder that has several")]


@data_app.command()
def dedupe(
    rows: Rows,
    out: Out,
    prompt: PromptColumn = None,
    answer: AnswerColumn = None,
    split: Split = None,
    conflicts: Annotated[
        Literal["drop", "first"], typer.Option(help="questions with different answers: none, or the first row")
    ] = "drop",
    debug: Debug = False,
) -> None:
    """Write the first row of every question; case, spacing and punctuation do not tell questions apart."""

    def work() -> None:
        from megatron_fork import data

        source = data.named_file(rows, split, _columns(prompt, answer))
        typer.echo(data.summary(data.deduplicate(source, out, conflicts=conflicts)))

    guarded(work, debug=debug)


@data_app.command()
def decontaminate(
    rows: Rows,
    out: Out,
    against: Annotated[list[str], typer.Option(help="evaluation set: a file or folder, or PRESET:PATH; repeatable")],
    ngram: Annotated[int, typer.Option(help="words in a row that make a row contaminated")] = 13,
    removed: Annotated[Path | None, typer.Option(help="JSON lines of what was removed, and why")] = None,
    prompt: PromptColumn = None,
    answer: AnswerColumn = None,
    split: Split = None,
    debug: Debug = False,
) -> None:
    """Write the rows that share no long run of words with a question of an evaluation set."""

    def work() -> None:
        from megatron_fork import data

        source = data.named_file(rows, split, _columns(prompt, answer))
        sets = [data.named_file(each, None, None) for each in against]
        typer.echo(data.summary(data.decontaminate(source, out, sets, ngram=ngram, removed=removed)))

    guarded(work, debug=debug)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _columns(prompt: str | None, answer: str | None) -> data.Columns | None:
    """The columns that were named; None where none was, so that a preset's count."""
    from megatron_fork.data import Columns

    named = {name: value for name, value in (("prompt", prompt), ("answer", answer)) if value is not None}
    return Columns(**named) if named else None


def _run_recipe(command: str, recipe: Path, overrides: list[str] | None, *, print_config: bool, debug: bool) -> None:
    def work() -> None:
        # Imported late: torch and megatron take seconds, and `--help` should not.
        from megatron_fork.console import Display, quiet_libraries

        quiet_libraries()
        from megatron_fork import distributed
        from megatron_fork.config import load_config, to_yaml

        config = load_config(recipe, overrides or [])
        if print_config:
            typer.echo(to_yaml(config), nl=False)
            return
        from megatron_fork.train import supervise
        from megatron_fork.train import train as train_recipe

        display = Display(speaks=distributed.rank() == 0)
        (train_recipe if command == "train" else supervise)(config, display)
        distributed.finalize()

    guarded(work, debug=debug)


def guarded(work: Callable[[], None], *, debug: bool) -> None:
    """Run `work`; print the user's errors as two lines on rank 0, and leave with their exit code."""
    try:
        work()
    except MegatronForkError as error:
        _explain(error, debug=debug)
        _leave(error.exit_code)
    except KeyboardInterrupt:
        _explain(MegatronForkError("interrupted before there was anything to save"), debug=debug)
        _leave(130)


def _explain(error: MegatronForkError, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    if os.environ.get("RANK", "0") != "0":
        return
    typer.secho(f"error: {error.message}", fg=typer.colors.RED, err=True)
    if error.hint:
        typer.echo(f"  {error.hint}", err=True)


def _leave(code: int) -> None:
    """End at once: a rank that failed alone must not wait for the others in an exit handler.

    Exit handlers would also have ended the checkpoint writer's helper process; without them that is ours to do.
    """
    for child in multiprocessing.active_children():
        child.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Entry point of `megatron-fork`."""
    app()


if __name__ == "__main__":
    main()
