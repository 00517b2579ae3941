"""How a command ends: the user's errors are two lines and an exit code, a defect of ours is a traceback."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from megatron_fork.errors import LayoutError, MegatronForkError
from megatron_fork.launcher import launch

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
        traceback.print_exc()
    speaks = is_first_rank()
    _tell_torchrun(error if speaks else MegatronForkError("as the first rank says"))
    if not speaks:
        return
    typer.secho(f"error: {error.message}", fg=typer.colors.RED, err=True)
    if error.hint:
        typer.echo(f"  {error.hint}", err=True)


def is_first_rank() -> bool:
    """Whether this is the rank that speaks for all, also where the launcher's other variables are broken."""
    try:
        place = launch()
    except LayoutError:
        return os.environ.get("RANK", "").strip() in ("", "0")
    return place is None or place.rank == 0


def _tell_torchrun(error: MegatronForkError) -> None:
    """Leave the error where torchrun looks for it: its report of failed ranks, the last of a job's log, then ends with it."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file:
        return
    lines = f"error: {error.message}" + (f"\n{error.hint}" if error.hint else "")
    record = {"message": lines, "extraInfo": {"py_callstack": lines, "timestamp": str(int(time.time()))}}
    with suppress(OSError):
        Path(file).write_text(json.dumps({"message": record}), encoding="utf-8")


def _leave(code: int) -> None:
    """End at once: a rank that failed alone must not wait for the others in an exit handler.

    Exit handlers would also have ended a checkpoint's writer; without them that is ours to do.
    """
    for child in multiprocessing.active_children():
        child.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
