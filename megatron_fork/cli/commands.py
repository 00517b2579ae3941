"""The command line. Exit code 0 only on success; an error is one line and a hint, a traceback only with --debug."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from megatron_fork import __version__
from megatron_fork.cli import analyze as analyze_commands
from megatron_fork.cli import convert as convert_commands
from megatron_fork.cli import data as data_commands
from megatron_fork.cli.compare import compare
from megatron_fork.cli.evaluate import evaluate, generate
from megatron_fork.cli.guard import Debug, guarded, stops_at_once, stops_no_more
from megatron_fork.errors import ConfigError
from megatron_fork.run import is_first_rank

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(analyze_commands.app, name="analyze")
app.add_typer(convert_commands.app, name="convert")
app.add_typer(data_commands.app, name="data")

app.command()(evaluate)
app.command()(generate)
app.command()(compare)

Recipe = Annotated[Path, typer.Argument(help="YAML file with the settings of the run", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="dotted overrides: selection.tokens=all train.steps=10", show_default=False)
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="print the resolved recipe and stop")]


@app.command()
def train(recipe: Recipe, overrides: Overrides = None, print_config: PrintConfig = False, debug: Debug = False) -> None:
    """Reinforcement learning: the warm start if the recipe has one, then the loop. Also under torchrun."""
    _run_recipe("train", recipe, overrides, print_config=print_config, debug=debug)


@app.command()
def sft(recipe: Recipe, overrides: Overrides = None, print_config: PrintConfig = False, debug: Debug = False) -> None:
    """Only the warm start: cross-entropy on the recipe's demonstrations; leaves a Hugging Face model folder."""
    _run_recipe("sft", recipe, overrides, print_config=print_config, debug=debug)


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="recipe to check", show_default=False)] = None,
    overrides: Overrides = None,
    ranks: Annotated[
        int | None, typer.Option(help="number of ranks to assume; by default as few as the layout needs", min=1)
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="try a step, the engine and a checkpoint with random weights")] = True,
    sync: Annotated[
        bool, typer.Option("--sync", help="send the recipe's weights to its servers, in place of those that they have")
    ] = False,
    patience: Annotated[float, typer.Option(help="seconds to wait for a rank or a server", min=1.0)] = 60.0,
    debug: Debug = False,
) -> None:
    """Show what this machine has, and try whether every part of a recipe would start here. Also under torchrun."""

    def work() -> None:
        # A scheduler's signal ends it as Ctrl-C does: what was written for a trial is removed.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        from megatron_fork.config import load_config
        from megatron_fork.run import quiet_libraries

        config = load_config(recipe, overrides or []) if recipe else None
        quiet_libraries()
        from rich.console import Console

        from megatron_fork import distributed
        from megatron_fork.cli.doctor import diagnose
        from megatron_fork.preflight import Preflight

        console = Console(highlight=False, quiet=distributed.rank() != 0)
        trying = Preflight(dry_run=dry_run, sync=sync, seconds=patience, debug=debug)
        try:
            diagnose(config, console, ranks=ranks, trying=trying)
        finally:
            distributed.finalize()

    guarded(work, debug=debug)


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="recipe, or with --from another trainer's file", show_default=False)],
    overrides: Overrides = None,
    gpus: Annotated[
        int | None, typer.Option(help="all GPUs, of trainer and engines; by default cluster.nodes'", min=1)
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(help="GiB of one GPU; by default cluster.gpu_memory", min=1.0)
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="all nodes, of trainer and engines", min=1)] = None,
    response: Annotated[
        int | None, typer.Option(help="mean tokens of a response; by default half of the longest", min=1)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    peer: Annotated[
        str | None,
        typer.Option("--from", help="show the settings of a file of verl, slime, nemo-rl or trl beside ours"),
    ] = None,
    write: Annotated[Path | None, typer.Option(help="with --from: write the recipe that is as near as can be")] = None,
    debug: Debug = False,
) -> None:
    """Show how much memory and time a recipe needs, which layouts fit, and how many GPUs it takes. Needs no GPU."""

    def work() -> None:
        if write and peer is None:
            raise ConfigError(f"--write={write} without --from", hint="name the trainer that the file belongs to")
        if peer is not None:
            if overrides or gpus or nodes or gpu_memory or response:
                raise ConfigError(
                    f"--from={peer} with a question about memory or time",
                    hint="write a recipe with --write, and ask `megatron-fork plan` about that",
                )
            from megatron_fork.cli.coming_from import show_translation

            show_translation(peer, recipe, write=write, as_json=as_json)
            return
        from megatron_fork.config import load_config

        config = load_config(recipe, overrides or [])
        if gpus and nodes:
            raise ConfigError(f"--gpus={gpus} and --nodes={nodes} are both given", hint="give one of them")
        from megatron_fork.run import quiet_libraries

        quiet_libraries()
        from rich.console import Console

        from megatron_fork.cli.plan import show_plan
        from megatron_fork.planning import Question

        show_plan(config, Question(gpus, gpu_memory, nodes, response), Console(highlight=False), as_json=as_json)

    guarded(work, debug=debug)


@app.command()
def launch(
    recipe: Recipe,
    overrides: Overrides = None,
    nodes: Annotated[
        int | None, typer.Option(help="nodes of the job, servers' among them; by default the recipe's", min=1)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the script and submit nothing")] = False,
    for_job: Annotated[
        str | None, typer.Option(help="what the script of this job asks for itself", hidden=True)
    ] = None,
    debug: Debug = False,
) -> None:
    """Check a recipe for its nodes and submit it to Slurm as a job that saves, requeues and resumes."""

    def work() -> None:
        from megatron_fork.config import load_config

        given = list(overrides or [])
        config = load_config(recipe, given)
        from megatron_fork.cli import launch as jobs

        placed = jobs.with_nodes(config, nodes)
        if for_job is not None:
            jobs.check_nodes(config, nodes)
            typer.echo(jobs.variables(config, for_job), nl=False)
            return
        from megatron_fork.run import quiet_libraries

        quiet_libraries()
        for unknown in jobs.check_job(placed, only_printed=dry_run):
            typer.echo(f"note: {unknown}", err=True)
        words = [*given, *([f"cluster.nodes={placed.cluster.nodes}"] if nodes else [])]
        text = jobs.script(placed, recipe, words)
        typer.echo(text, nl=False) if dry_run else typer.echo(jobs.submit(text, placed.cluster))

    guarded(work, debug=debug)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def of_every_command(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Reinforcement learning on the forking tokens of reasoning models, on Megatron-core."""


def _run_recipe(command: str, recipe: Path, overrides: list[str] | None, *, print_config: bool, debug: bool) -> None:
    def work() -> None:
        stops_at_once()
        # Torch and Megatron take seconds to import: a mistyped field or `--print-config` must not wait for them.
        from megatron_fork.config import load_config

        config = load_config(recipe, overrides or [])
        if print_config:
            from megatron_fork.recipe import described

            if is_first_rank():
                typer.echo(described(config), nl=False)
            stops_no_more()
            return
        if command == "sft" and not config.sft.steps:
            raise ConfigError(
                "sft.steps=0: the command sft has nothing to do",
                hint="set the steps of the warm start, such as sft.steps=800",
            )
        from megatron_fork.run import Display, quiet_libraries

        quiet_libraries()
        from megatron_fork import distributed
        from megatron_fork.run import supervise
        from megatron_fork.train import train as train_recipe

        display = Display(speaks=distributed.rank() == 0)
        (train_recipe if command == "train" else supervise)(config, display)
        stops_no_more()
        distributed.finalize()

    guarded(work, debug=debug)


def main() -> None:
    """Entry point of `megatron-fork`."""
    # Before torch is imported. Threads that spin while they wait take the core from those that they wait for as soon as
    # another process uses it too: the warm start of the quickstart fell to a tenth of its speed or less.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()
