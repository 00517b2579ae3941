"""How a command ends: a user's error prints two lines and has an exit code, a defect of the project prints a traceback."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType, TracebackType
from typing import Annotated

import typer

from megatron_fork import distributed
from megatron_fork.errors import ConfigError, Interrupted, LayoutError, MegatronForkError, Preempted, masked
from megatron_fork.run import explain, is_first_rank, leave, users_errors

_FIRST_RANK_SECONDS = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_NOTHING_YET = "interrupted before there was anything to save"
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


def guarded(work: Callable[[], None], *, debug: bool) -> None:
    """Run `work`; print a user's error as two lines on rank 0, and exit with its code."""
    sys.excepthook = _print_traceback
    threading.excepthook = lambda raised: _print_traceback(raised.exc_type, raised.exc_value, raised.exc_traceback)
    try:
        with users_errors():
            work()
    except MegatronForkError as error:
        tell(error, debug=debug)
        leave(error.exit_code)
    except KeyboardInterrupt:
        explain(Interrupted(_NOTHING_YET), debug=debug)
        leave(130)
    except Exception as defect:
        if distributed.awaits_others() is None:
            raise
        with distributed.telling_others(defect):
            _print_traceback(type(defect), defect, defect.__traceback__)
        leave(1)


def tell(error: MegatronForkError, *, debug: bool) -> None:
    """Print a user's error before the program ends; the ranks that this one has not met hear of it."""
    place = distributed.awaits_others()
    if place is not None and place.rank == 0:
        explain(error, debug=debug)  # before torch is imported, which takes seconds
        with distributed.telling_others(error):
            return
    if place is not None:
        with distributed.telling_others(error) as is_alone:
            if is_alone:
                error.speak_for(f"rank {place.rank} on {socket.gethostname()}")
            explain(error, debug=debug)
        return
    explain(error, debug=debug)
    if isinstance(error, ConfigError | LayoutError) and not error.is_of_one_rank and not is_first_rank():
        # The first rank meets the same error and must print it before torchrun, which ends all ranks when one exits.
        time.sleep(_FIRST_RANK_SECONDS)


def stops_at_once() -> None:
    """Until the run handles signals itself, a signal ends the process with the exit code of a saved run.

    It does not raise an exception, since the libraries that are imported meanwhile might catch it.
    """
    for number in _SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as `nohup` leaves it
            signal.signal(number, partial(_stop, os.getpid()))


def stops_no_more() -> None:
    """All is done: a signal cannot make a failure of it, neither now nor while Python ends, which drops all handlers."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stop(process: int, number: int, frame: FrameType | None) -> None:
    if os.getpid() != process:  # a forked child, which gets Ctrl-C too
        os._exit(1)
    kind = Interrupted if number == signal.SIGINT else Preempted
    with suppress(RuntimeError, OSError):  # the signal came during a write, or the terminal is closed
        explain(kind(_NOTHING_YET), debug=False)
    leave(kind.exit_code)


def _print_traceback(kind: type[BaseException], defect: BaseException | None, trace: TracebackType | None) -> None:
    """Print a traceback as Python does, but without passwords and keys."""
    if not issubclass(kind, SystemExit):
        typer.echo(masked("".join(traceback.format_exception(kind, defect, trace))), err=True, nl=False)
