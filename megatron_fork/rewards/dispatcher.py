"""The thread that keeps a pool's workers busy: it assigns jobs, reads replies, kills late workers and starts others.

Only this thread touches workers. Callers share the waiting jobs with it under one condition variable, and wake it by a byte.
"""

from __future__ import annotations

import contextlib
import math
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_fork.rewards.process import WorkerProcess
from megatron_fork.rewards.score import Failure, RewardError, Score

START_SECONDS = 120.0  # a cold shared file system takes long to load sympy
START_ATTEMPTS = 3

Outcome = Score | RewardError


@dataclass(eq=False)
class Job:
    """One response to score. `finish` is called once, under the pool's condition, with the score or the error."""

    response: str
    answer: str
    finish: Callable[[Outcome], None]
    cancelled: bool = False


@dataclass
class PoolCounts:
    """What a pool has done so far. Jobs that timed out, that made their worker die, or on which the verifier raised an error
    (`errors`) are each scored 0, once.
    """

    scored: int = 0
    errors: int = 0
    timed_out: int = 0
    died: int = 0
    workers_started: int = 0


class Dispatcher:
    """Workers of one kind and the thread that runs them, from the first job until `close`."""

    def __init__(self, start_worker: Callable[[float], WorkerProcess], workers: int, describe: str) -> None:
        self.changed = threading.Condition()
        self.waiting: deque[Job] = deque()
        self.counts = PoolCounts()
        self.holds: list[str] = []
        """What confines the workers, as reported by the last one that started."""
        self.refusal: RewardError | None = None
        """Why no worker can work on this machine, if one has reported that."""
        self._start_worker = start_worker
        self._max_workers = workers
        self._describe = describe
        self._target = 0
        self._workers: list[WorkerProcess] = []
        self._jobs: dict[int, Job] = {}
        self._assigned = 0
        self._failed_starts = 0
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)  # the caller of `wake` holds the lock that the thread may be waiting for
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread: threading.Thread | None = None

    def put(self, job: Job) -> None:
        """Let `job` wait for a worker; the caller holds `changed`."""
        self.waiting.append(job)
        self.want(len(self.waiting) + len(self._jobs))

    def want(self, workers: int) -> None:
        """Make sure that this many workers run, up to the pool's size; the caller holds `changed`."""
        self._target = max(self._target, min(workers, self._max_workers))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="reward pool", daemon=True)
            self._thread.start()
        self.wake()

    def cancel(self, jobs: list[Job]) -> None:
        """Give up unfinished jobs; a worker that works on one of them is killed. The caller holds `changed`."""
        for job in jobs:
            job.cancelled = True
        self.waiting = deque(job for job in self.waiting if not job.cancelled)
        self.wake()

    def ready(self) -> int:
        return sum(worker.ready for worker in list(self._workers))

    def wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake.send(b"\0")

    def close(self) -> None:
        """Kill the workers, and wait for them and the thread; waiting jobs fail."""
        with self.changed:
            self._closing = True
        self.wake()
        if self._thread is not None:
            self._thread.join()
        else:
            self._end()

    def _run(self) -> None:
        try:
            while not self._closing:
                self._run_once()
            self._fail_all(RewardError("the reward pool is closed", hint="score before close(), or make a new pool"))
        except BaseException as error:
            # The callers that wait for a score must get the error; nobody else would notice it.
            self._fail_all(RewardError(f"the reward pool broke: {type(error).__name__}: {error}"))
            raise
        finally:
            self._end()

    def _run_once(self) -> None:
        self._discard_cancelled()
        self._assign()
        self._start()
        # Replies are read before deadlines are checked: workers must not be killed because the parent slept.
        for key, _ in self._selector.select(self._seconds_to_deadline()):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(1 << 12)
            else:
                self._read_reply(key.data)
        now = time.monotonic()
        for worker in [worker for worker in self._workers if worker.deadline <= now]:
            if not worker.granted_more_time():
                self._lose(worker, late=True)

    def _discard_cancelled(self) -> None:
        cancelled = {index for index, job in self._jobs.items() if job.cancelled}
        for worker in [worker for worker in self._workers if worker.job in cancelled]:
            self._discard(worker)
        with self.changed:
            for index in cancelled:
                del self._jobs[index]

    def _assign(self) -> None:
        for worker in [worker for worker in self._workers if worker.idle]:
            if not worker.alive():  # it died between two jobs, so no job fails
                self._discard(worker)
                continue
            with self.changed:
                if not self.waiting:
                    return
                job = self.waiting.popleft()
                self._assigned += 1
                self._jobs[self._assigned] = job
                self.changed.notify_all()  # there is room for another job
            worker.begin(self._assigned, job.response, job.answer)
            self._selector.modify(worker.socket, worker.events, worker)

    def _start(self) -> None:
        while len(self._workers) < self._target:
            worker = self._start_worker(time.monotonic() + START_SECONDS)
            self.counts.workers_started += 1
            self._workers.append(worker)
            self._selector.register(worker.socket, worker.events, worker)

    def _seconds_to_deadline(self) -> float | None:
        nearest = min((worker.deadline for worker in self._workers), default=math.inf)
        return None if nearest == math.inf else max(0.0, nearest - time.monotonic())

    def _read_reply(self, worker: WorkerProcess) -> None:
        try:
            message = worker.pump()
            if message is not None:
                self._accept(worker, message)
        except (OSError, ValueError):
            self._lose(worker, late=False)
        if worker in self._workers:
            self._selector.modify(worker.socket, worker.events, worker)

    def _accept(self, worker: WorkerProcess, message: Any) -> None:
        """Handle "ready", a refusal or the reply to the worker's job; raises ValueError on any other message."""
        match message:
            case ["ready", list(holds)] if not worker.ready:
                worker.ready = True
                with self.changed:
                    self._failed_starts = 0
                    self.holds = holds
                    self.changed.notify_all()
            case ["refused", str(why), str(hint)] if not worker.ready:
                self._discard(worker)
                self._target = 0
                self.refusal = RewardError(why, hint=hint)
                self._fail_all(self.refusal)
                return
            case [int(index), float(value), str(reason), None | "error" as failure] if (
                index == worker.job and math.isfinite(value)
            ):
                worker.job = None
                self.counts.errors += failure is not None
                self._finish(index, Score(value, reason, failure))
            case _:
                raise ValueError("not the reply to the job")
        worker.deadline = math.inf

    def _finish(self, index: int, outcome: Outcome) -> None:
        with self.changed:
            job = self._jobs.pop(index)
            self.counts.scored += 1
            if not job.cancelled:
                job.finish(outcome)
            self.changed.notify_all()

    def _lose(self, worker: WorkerProcess, *, late: bool) -> None:
        """Give up a worker that is late, dead or sends nonsense; its job, if any, scores 0."""
        job = worker.job
        self._discard(worker)
        if job is not None:
            self.counts.timed_out += late
            self.counts.died += not late
            reason = f"verifier timed out after {worker.timeout_seconds:g} s" if late else "verifier died"
            failure: Failure = "timed_out" if late else "died"
            self._finish(job, Score(0.0, reason, failure))
        elif not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= START_ATTEMPTS:
                self._failed_starts = 0
                self._target = 0
                self._fail_all(
                    RewardError(
                        f"no worker for {self._describe} could be started in {START_ATTEMPTS} attempts",
                        hint="see their error output; is rewards.memory_gib too low?",
                    )
                )

    def _fail_all(self, error: RewardError) -> None:
        with self.changed:
            jobs = [*self.waiting, *self._jobs.values()]
            self.waiting.clear()
            for job in jobs:
                if not job.cancelled:
                    job.finish(error)
                job.cancelled = True
            self.changed.notify_all()

    def _discard(self, worker: WorkerProcess) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.socket)
        worker.kill()

    def _end(self) -> None:
        for worker in list(self._workers):
            self._discard(worker)
        self._selector.close()
        self._wake.close()
        self._woken.close()
