"""How a command ends: the user's errors are two lines and an exit code, a defect of ours is a traceback."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated

import typer

from megatron_fork.distributed import another_tells, launch
from megatron_fork.errors import ConfigError, Interrupted, LayoutError, MegatronForkError, Preempted, masked

_FIRST_RANK_SECONDS = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_NOTHING_YET = "interrupted before there was anything to save"
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


def guarded(work: Callable[[], None], *, debug: bool) -> None:
    """Run `work`; print the user's errors as two lines on rank 0, and leave with their exit code."""
    sys.excepthook = _tell_defect
    threading.excepthook = lambda told: _tell_defect(told.exc_type, told.exc_value, told.exc_traceback)
    try:
        work()
    except MegatronForkError as error:
        _explain(error, debug=debug)
        if isinstance(error, ConfigError) and not is_first_rank():
            # The first rank has met the same, and torchrun ends all as soon as one has left: it must have told it by then.
            time.sleep(_FIRST_RANK_SECONDS)
        _leave(error.exit_code)
    except OSError as error:
        if error.filename is None or error.strerror is None:  # no file's, and so ours
            raise
        refused = MegatronForkError(
            f"{_name(error.filename)} cannot be used: {error.strerror}",
            hint="look at its name, its rights and its disk; --debug shows what it was wanted for",
        )
        _explain(refused, debug=debug)
        _leave(refused.exit_code)
    except KeyboardInterrupt:
        _explain(Interrupted(_NOTHING_YET), debug=debug)
        _leave(130)


def _name(file: object) -> str:
    text = os.fsdecode(file) if isinstance(file, bytes) else str(file)
    return text if len(text) <= 200 and text.isprintable() else ascii(text[:200]) + "..."


def stops_at_once() -> None:
    """Until a run listens itself, a signal ends it with the exit code that a saved run has.

    No exception: the libraries that are imported meanwhile catch what they can.
    """
    for number in _SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as `nohup` leaves it
            signal.signal(number, partial(_stop, os.getpid()))


def stops_no_more() -> None:
    """All is done: a signal cannot make a failure of it, neither now nor while Python ends, which drops all handlers."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stop(process: int, number: int, frame: FrameType | None) -> None:
    if os.getpid() != process:  # a fork, to which Ctrl-C comes too
        os._exit(1)
    kind = Interrupted if number == signal.SIGINT else Preempted
    with suppress(RuntimeError, OSError):  # in the middle of a write, or the terminal is gone
        _explain(kind(_NOTHING_YET), debug=False)
    _leave(kind.exit_code)


def _tell_defect(kind: type[BaseException], defect: BaseException | None, trace: TracebackType | None) -> None:
    """As Python does it, without passwords and keys."""
    if not issubclass(kind, SystemExit):
        typer.echo(masked("".join(traceback.format_exception(kind, defect, trace))), err=True, nl=False)


def _explain(error: MegatronForkError, *, debug: bool) -> None:
    if debug:
        typer.echo(masked(traceback.format_exc()), err=True, nl=False)
    speaks = is_first_rank() or error.is_of_one_rank
    _tell_torchrun(error if speaks else MegatronForkError("as the first rank says"))
    if not speaks:
        return
    typer.secho(f"error: {masked(error.message)}", fg=typer.colors.RED, err=True)
    if error.hint:
        typer.echo(f"  {masked(error.hint)}", err=True)


def is_first_rank() -> bool:
    """Whether this is the rank that speaks for all, also where the launcher's variables are broken."""
    try:
        place = launch()
    except LayoutError:
        return not another_tells()
    return place is None or place.rank == 0


def _tell_torchrun(error: MegatronForkError) -> None:
    """Leave the error where torchrun looks for it: its report of failed ranks, the last of a job's log, then ends with it."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file:
        return
    lines = masked(f"error: {error.message}" + (f"\n{error.hint}" if error.hint else ""))
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
