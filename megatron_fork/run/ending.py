"""How a process ends by a user's error: two lines on the rank that speaks, and an exit code, whatever other ranks do."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import typer

from megatron_fork.distributed import another_prints, launch
from megatron_fork.errors import LayoutError, MegatronForkError, masked

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def users_errors() -> Iterator[None]:
    """Turn an `OSError` that a user can mend into a `MegatronForkError`; any other is a defect, and stays what it is."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _FULL:  # no file of ours: what a shell has sent the output to
            with suppress(OSError):  # what is still to be written would fail again, when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise MegatronForkError(
                f"the output cannot be written: {error.strerror}", hint="send it elsewhere"
            ) from error
        if error.filename is None or error.strerror is None:  # not about a file, and so a defect
            raise
        raise MegatronForkError(
            f"{_name(error.filename)} cannot be used: {error.strerror}",
            hint="check its name, its permissions and its disk; --debug shows what needed it",
        ) from error


def _name(file: object) -> str:
    text = os.fsdecode(file) if isinstance(file, bytes) else str(file)
    return text if len(text) <= 200 and text.isprintable() else ascii(text[:200]) + "..."


def end_with(error: MegatronForkError) -> NoReturn:
    """Print the error and end the process, from any thread, whatever the others wait for."""
    with suppress(RuntimeError, OSError, ValueError):  # a thread has not finished writing, or the terminal is closed
        explain(error, debug=False)
    leave(error.exit_code)


def explain(error: MegatronForkError, *, debug: bool) -> None:
    """Print an error as two lines, on the first rank or one that may meet it alone; with a traceback for `debug`."""
    if debug:
        typer.echo(masked(traceback.format_exc()), err=True, nl=False)
    speaks = is_first_rank() or error.is_of_one_rank
    _write_for_torchrun(error if speaks else MegatronForkError("see the error of the first rank"))
    if not speaks:
        return
    typer.secho(f"error: {masked(error.message)}", fg=typer.colors.RED, err=True)
    if error.hint:
        typer.echo(f"  {masked(error.hint)}", err=True)


def is_first_rank() -> bool:
    """Whether this is the rank that prints for all, also if the launcher's variables are broken."""
    try:
        place = launch()
    except LayoutError:
        return not another_prints()
    return place is None or place.rank == 0


def _write_for_torchrun(error: MegatronForkError) -> None:
    """Write the error to the file that torchrun reads, so that its report of failed ranks ends a job's log with it."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file:
        return
    lines = masked(f"error: {error.message}" + (f"\n{error.hint}" if error.hint else ""))
    record = {"message": lines, "extraInfo": {"py_callstack": lines, "timestamp": str(int(time.time()))}}
    with suppress(OSError):
        Path(file).write_text(json.dumps({"message": record}), encoding="utf-8")


def leave(code: int) -> NoReturn:
    """Exit without exit handlers, in which a rank that failed alone would wait for the others.

    The handlers would also end a checkpoint's writer process; without them it is terminated here.
    """
    for child in multiprocessing.active_children():
        child.terminate()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
