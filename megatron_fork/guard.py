"""How a command ends: the user's errors are two lines and an exit code, a defect of ours is a traceback."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from megatron_fork.errors import LayoutError, MegatronForkError
from megatron_fork.launcher import launch
from megatron_fork.masking import masked

Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


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
        typer.echo(masked(traceback.format_exc()), err=True, nl=False)
    if not _speaks():
        return
    typer.secho(f"error: {masked(error.message)}", fg=typer.colors.RED, err=True)
    if error.hint:
        typer.echo(f"  {masked(error.hint)}", err=True)


def _speaks() -> bool:
    """Whether this is the rank that speaks for all; where that cannot be known, each does."""
    try:
        place = launch()
    except LayoutError:
        return True
    return place is None or place.rank == 0


def _leave(code: int) -> None:
    """End at once: a rank that failed alone must not wait for the others in an exit handler.

    Exit handlers would also have ended a checkpoint's writer; without them that is ours to do.
    """
    for child in multiprocessing.active_children():
        child.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
