"""Ctrl-C and the scheduler's signals: the first asks the run to save and stop, the second stops it at once.

If there is nothing to save, for example while weights are loaded or before the first step, the first one stops it too.

Slurm sends SIGTERM before it takes a job's machines away, and the signal of `--signal`, usually SIGUSR1, before the time is up.
SIGHUP comes when the terminal closes, for example with an SSH session; output after that is discarded. A run under `nohup`,
which ignores SIGHUP, continues.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, TracebackType

import torch

from megatron_fork.distributed import collectives, device
from megatron_fork.errors import StopRequested

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
# One Ctrl-C reaches a rank twice: from the terminal, and forwarded by torchrun.
_SAME_REQUEST_SECONDS = 1.0


class StoppedAtOnce(KeyboardInterrupt):
    """Raised by a signal wherever the process is; not an `Exception`, since libraries catch those."""


class StopRequest:
    """Within this context the first signal is remembered; `agreed` shares it with all ranks."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.by_user = True
        """Whether the ranks were stopped by Ctrl-C and not by the scheduler."""
        self._first = 0.0
        self.has_raised = False
        """Whether `StoppedAtOnce` was raised; later failures are then caused by ranks that are ending."""
        self._raises = False

    def __enter__(self) -> StopRequest:
        self._process = os.getpid()
        self._on_terminal = [number for number in (1, 2) if os.isatty(number)]
        heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN or number != signal.SIGHUP]
        self._previous = {number: signal.signal(number, self._remember) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._leave_terminal()
        now = time.monotonic()
        if self._raises and os.getpid() != self._process:  # a forked child, which gets Ctrl-C too, ends silently
            _end_by(number)
        elif self.received is None:
            self.received, self._first = number, now
            self._raise_if_asked()
        elif now - self._first > _SAME_REQUEST_SECONDS:
            _end_by(number)

    def _leave_terminal(self) -> None:
        """Writing to a closed terminal fails, and the run must still be saved."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in self._on_terminal:
            os.dup2(nowhere, number)
        os.close(nowhere)

    def at_once(self) -> AbstractContextManager[None]:
        """In this context there is nothing to save: a signal raises `StoppedAtOnce`."""
        return self._raising(True)

    def remembered(self) -> AbstractContextManager[None]:
        """In this context there is something to save: a signal waits for the next stop point or the context's end."""
        return self._raising(False)

    @contextmanager
    def _raising(self, raises: bool) -> Iterator[None]:
        before, self._raises = self._raises, raises
        try:
            self._raise_if_asked()
            yield
        finally:
            self._raises = before
        self._raise_if_asked()

    def _raise_if_asked(self) -> None:
        if self._raises and self.received is not None:
            self.by_user = self.received == signal.SIGINT
            self.has_raised = True
            raise StoppedAtOnce

    def local_stop_point(self) -> None:
        """Raise `StopRequested` if this rank was asked to stop; the others may not know yet."""
        if self.received is not None:
            raise StopRequested

    def agreed(self, world: collectives.Group) -> bool:
        """Whether any rank was asked to stop; every rank must call it."""
        number = torch.tensor(float(self.received or 0), device=device())
        agreed = int(collectives.all_reduce_max(number, world))
        self.by_user = agreed in (0, signal.SIGINT)
        return agreed != 0


def _end_by(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
