"""Notices that a rank is lost, which would leave the others waiting for it, and ends this process with the rank's name.

Each rank has a thread that writes a beat to the store by which the ranks have connected. The first rank reads all beats, the
others read the first rank's. Whoever misses one long enough, or fails itself, writes a verdict, once for all ranks: the first
that failed, where, and why. Every rank ends by it: at once if the rank is lost, after a moment if it has failed by itself,
since failures that all ranks meet end each of them in its own way, and the first rank prints them for all. Where that does not
fail too, the rank that did speaks for itself: its launcher may end the first rank before that has named it.

Time is counted in rounds of the thread, not by the clock: a machine that was suspended has heard nobody, and accuses nobody.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_fork.distributed.verdict import Verdict, first_line, is_of_others
from megatron_fork.errors import Interrupted, MegatronForkError, RankLostError

_MOST_SECONDS_OF_A_ROUND = 1.0
# Ranks that have connected start their watches at about the same time.
_START_SECONDS = 60.0
# How long a rank that failed by itself leaves the others to end by themselves, and how long one of them is searched for whose
# loss broke a collective: the beats of those that live come every round.
_GRACE_SECONDS, _SUSPICION_SECONDS = 15.0, 5.0
# How long the first rank, which may hold the store, waits for the others to have read the verdict, and how long another
# waits for the first rank to fail as it did.
_HEARD_SECONDS, _ALIKE_SECONDS, _POLL_SECONDS = 5.0, 3.0, 0.1
_DONE, _VERDICT, _SUSPICION, _ALONE = b"done", "verdict", "suspicion", "alone"
End = Callable[[RankLostError], None]


class RankWatch:
    """The watch of one rank; `start` it once all ranks have connected, and end it with `finish` or `fail`."""

    def __init__(self, store: Any, rank: int, ranks: int, *, timeout_seconds: float, end: End) -> None:
        """`end` is called, in a thread, to end this process where it waits for a rank that is lost."""
        # Keys of its own for each watch of these ranks: of the last one they say that all are through.
        number = store.add(f"rank-watches/{rank}", 1)
        # A connection of its own: the other one is in use for as long as a rank waits for something in the store.
        self._store: Any = dist.PrefixStore(f"rank-watch-{number}", store.clone())  # type: ignore[attr-defined]
        self._rank, self._ranks, self._timeout, self._end = rank, ranks, timeout_seconds, end
        self._round = min(_MOST_SECONDS_OF_A_ROUND, timeout_seconds / 4)
        # Of each rank that is listened to: its last beat, and seconds for which there was no other.
        self._heard: dict[int, bytes] = {}
        self._silent: dict[int, float] = {}
        self._place_of_first = ["", "", ""]
        self._verdict: Verdict | None = None
        self._is_answered = True
        self._broken = ""
        self._reported = False
        self._wake, self._done = threading.Event(), threading.Event()
        self._last_word: Verdict | None = None
        self._speaks_itself = self._failed_alone = False

    def start(self) -> None:
        self._store.set(f"place/{self._rank}", _place_of_this_process())
        if self._rank != 0:  # known before the store is gone with the rank
            self._store.wait(["place/0"], timedelta(seconds=max(self._timeout, _START_SECONDS)))
            self._place_of_first = self._place(0)
        for work in (self._beat, self._tick):
            threading.Thread(target=work, name=f"rank watch: {work.__name__}", daemon=True).start()

    def finish(self) -> None:
        """This rank is through. The first one, which may hold the store, waits for the others."""
        self._wake.set()
        self._done.wait(self._timeout)
        if self._verdict is not None:
            raise self._verdict.error(self._rank)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Tell the other ranks what fails in this context; raises `RankLostError` if another rank failed before."""
        try:
            yield
        except BaseException as error:
            if not self._reported:
                self._reported = True
                cause = self._cause(error) if is_of_others(error) else None
                if cause is not None:
                    raise cause.error(self._rank) from error
                self._announce(error)
            raise

    def _cause(self, error: BaseException) -> Verdict | None:
        """After a failed collective: whose loss or failure was the cause; None if it is this rank's own."""
        with suppress(RuntimeError):
            self._store.set(_SUSPICION, "")
        for _ in range(round((_SUSPICION_SECONDS + self._timeout) / self._round)):
            if self._verdict is not None or self._done.wait(self._round):
                break
        if self._broken:
            return self._verdict or self._lost_store(0.0)
        if self._verdict is not None:
            self._take_leave()
        return self._verdict

    def _announce(self, error: BaseException) -> None:
        """Write the verdict on this rank, unless there is one; the rank ends by its own error."""
        # What all ranks agree on, and a defect, whose traceback every rank prints, need no word of this rank's own.
        told = error if isinstance(error, MegatronForkError) and not isinstance(error, Interrupted) else None
        by_nature = told is not None and told.is_of_one_rank
        self._speaks_itself = self._rank != 0 and self._verdict is None and told is not None and not by_nature
        self._last_word = Verdict.of_failed(self._rank, error)
        self._wake.set()
        self._done.wait(2 * _HEARD_SECONDS)
        if told is not None and self._rank != 0 and (by_nature or self._speaks_itself):
            told.speak_for(f"rank {self._rank} on {self._last_word.host}")

    def _take_leave(self) -> None:
        """Before this rank ends by another's verdict: the first one, which may hold the store, lets the others read it."""
        self._wake.set()
        if self._rank == 0:
            self._done.wait(2 * _HEARD_SECONDS)

    # One thread talks with the store ...

    def _beat(self) -> None:
        try:
            beat = 0
            while not self._wake.wait(self._round):
                beat += 1
                self._store.set(f"beat/{self._rank}", str(beat))
                self._look()
                self._is_answered = True
            if self._last_word is not None:
                self._say(self._last_word)
            elif self._verdict is None:
                self._store.set(f"beat/{self._rank}", _DONE)
            self._wait_for_others()
        except RuntimeError as error:  # torch's errors of stores are such
            self._broken = first_line(error)
        finally:
            self._done.set()

    def _look(self) -> None:
        if self._verdict is None and self._store.check([_VERDICT]):
            self._read_verdict()
        if self._verdict is not None:
            self._failed_alone = self._store.check([_ALONE])
        else:
            suspicious = self._store.check([_SUSPICION])
            patience = min(self._timeout, _SUSPICION_SECONDS) if suspicious else self._timeout
            self._listen(range(self._ranks) if self._rank == 0 else [0], patience)

    def _listen(self, ranks: Sequence[int], patience: float) -> None:
        """Read the beats of `ranks`, and accuse the one that has been silent longest if that is too long."""
        others = [rank for rank in ranks if rank != self._rank]
        # Reading what was never written would wait for it.
        begun = [rank for rank in others if rank in self._heard or self._store.check([f"beat/{rank}"])]
        beats = self._store.multi_get([f"beat/{rank}" for rank in begun]) if begun else []
        for rank, beat in zip(begun, beats, strict=True):
            self._silent[rank] = (
                0.0 if beat == _DONE or beat != self._heard.get(rank) else self._silent[rank] + self._round
            )
            self._heard[rank] = beat
        for rank in others:
            if rank not in self._heard:
                self._silent[rank] = self._silent.get(rank, 0.0) + self._round
        lost = max(others, key=self._silent.__getitem__)
        if self._silent[lost] > patience:
            reason = f"no sign of life for {self._silent[lost]:.0f} s; killed, stopped, or its machine is gone"
            self._decide(Verdict.of_lost(lost, self._place(lost)[0], reason))

    def _place(self, rank: int) -> list[str]:
        """Host, process and start of a rank."""
        return (
            self._store.get(f"place/{rank}").decode().split() if self._store.check([f"place/{rank}"]) else ["", "", ""]
        )

    def _decide(self, verdict: Verdict) -> None:
        self._store.compare_set(_VERDICT, "", verdict.to_json())

    def _say(self, last_word: Verdict) -> None:
        """That this rank has failed by itself; it leaves once whoever speaks has come to it.

        A launcher ends all ranks with the first that leaves.
        """
        self._store.set(f"failed/{self._rank}", "")
        self._decide(last_word)
        is_first = Verdict.from_json(self._store.get(_VERDICT)).rank == self._rank
        self._speaks_itself = self._speaks_itself and is_first and not self._seen("failed/0", _ALIKE_SECONDS)
        if self._speaks_itself:
            self._store.set(_ALONE, "")
        self._read_verdict()
        if self._rank != 0 and not self._speaks_itself and (not is_first or self._store.check(["failed/0"])):
            self._seen("never: the first rank ends, and the store with it", 2 * _ALIKE_SECONDS)

    def _seen(self, key: str, limit: float) -> bool:
        for _ in range(round(limit / _POLL_SECONDS)):
            self._is_answered = True
            if self._store.check([key]):
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def _read_verdict(self) -> None:
        verdict = Verdict.from_json(self._store.get(_VERDICT))
        if verdict.is_lost:
            _kill_if_here(*self._place(verdict.rank))
        self._store.set(f"heard/{self._rank}", "")
        self._verdict = verdict

    def _wait_for_others(self) -> None:
        """On the first rank: until every other one is done, or knows the verdict."""
        others = [rank for rank in range(self._ranks) if rank != self._rank] if self._rank == 0 else []
        for tried in range(round(max(self._timeout, _HEARD_SECONDS) / _POLL_SECONDS)):
            self._is_answered = True
            others = [rank for rank in others if not self._knows_the_end(rank)]
            limit = self._timeout if self._verdict is None else _HEARD_SECONDS
            if not others or tried >= limit / _POLL_SECONDS:
                return
            if self._verdict is None and self._store.check([_VERDICT]):
                self._read_verdict()
            time.sleep(_POLL_SECONDS)

    def _knows_the_end(self, rank: int) -> bool:
        """Whether a rank is through, knows the verdict, or is the one that the verdict is on, unless this one failed too."""
        if self._verdict is not None and self._verdict.rank == rank and self._last_word is None:
            return True
        if self._store.check([f"heard/{rank}"]):
            return True
        return bool(self._store.check([f"beat/{rank}"])) and self._store.get(f"beat/{rank}") == _DONE

    # ... and one notices that it gets no answer, or has a verdict, and ends the process.

    def _tick(self) -> None:
        unanswered = since_verdict = 0.0
        while not self._done.wait(self._round) or (self._broken and not self._wake.is_set()):
            unanswered = 0.0 if self._is_answered else unanswered + self._round
            self._is_answered = False
            verdict = self._verdict
            if verdict is None and (self._broken or unanswered > self._timeout):
                verdict = self._lost_store(unanswered)
            if verdict is not None:
                since_verdict += self._round
                ends_by_itself = not verdict.is_lost or self._reported
                if not ends_by_itself or self._failed_alone or since_verdict > _GRACE_SECONDS:
                    if verdict is self._verdict:
                        self._take_leave()
                    self._end(verdict.error(self._rank))
                    return
                time.sleep(self._round if self._broken else 0.0)

    def _lost_store(self, unanswered: float) -> Verdict:
        why = self._broken or f"no answer for {unanswered:.0f} s"
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            reason = f"the launcher's store, by which the ranks are connected, is gone: {why}"
        else:
            reason = f"the store of the ranks, which it holds, is gone: {why}"
            _kill_if_here(*self._place_of_first)
        return Verdict.of_lost(0, self._place_of_first[0], reason)


class NoWatch:
    """For a run of one rank, or one that is not to be watched."""

    def reporting(self) -> AbstractContextManager[None]:
        return nullcontext()


@contextmanager
def watching_ranks(timeout_seconds: float, end: End) -> Iterator[RankWatch | NoWatch]:
    """A watch over all ranks, which have connected; none for a single rank, or with a timeout of 0."""
    if dist.get_world_size() == 1 or not timeout_seconds:
        yield NoWatch()
        return
    store = dist.distributed_c10d._get_default_store()
    rank = dist.get_rank()
    try:
        watch = RankWatch(store, rank, dist.get_world_size(), timeout_seconds=timeout_seconds, end=end)
        watch.start()
    except RuntimeError as error:  # the store's: the first rank, which may hold it, has ended since it connected
        reason = f"it does not answer in the store of the ranks: {first_line(error)}"
        raise Verdict.of_lost(0, "", reason).error(rank) from error
    with watch.reporting():
        yield watch
    watch.finish()


def _place_of_this_process() -> str:
    return f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())}"


def _started(process: int) -> str:
    """When a process began, in ticks, which tells it from a later one of the same number; empty if there is none."""
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _kill_if_here(host: str, process: str, started: str) -> None:
    """End a lost rank of this machine: stopped, it would keep its GPU's memory, and its launcher waiting."""
    if host == socket.gethostname() and started and _started(int(process)) == started and int(process) != os.getpid():
        with suppress(OSError):
            os.kill(int(process), signal.SIGKILL)
