"""Many responses scored in worker processes that are killed when they hang, die or talk nonsense.

A verifier may need for ever on one hostile answer, and no exception can stop a computation inside an extension module.
So each job has a deadline that the parent keeps, and SIGKILL is the time-out. One job is in flight per worker, hence
the job that costs a worker its life is known exactly: it scores 0, and nothing else is touched.
"""

from __future__ import annotations

import math
import selectors
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_fork.errors import ConfigError
from megatron_fork.rewards.process import WorkerProcess
from megatron_fork.rewards.score import RewardError, Score
from megatron_fork.rewards.verifiers import VERIFIERS, score

START_SECONDS = 120.0  # a cold shared file system needs its time to serve sympy
START_ATTEMPTS = 3


@dataclass
class Config:
    """How responses are scored.

    `workers` is the number of processes; 0 scores in the calling process, without time or memory limit, which suits
    only verifiers that are bounded by construction ("reach"). `timeout_seconds` is per response, `memory_gib` is the
    address space of each worker in GiB. Raises ConfigError.
    """

    kind: str = "math"
    workers: int = 1
    timeout_seconds: float = 5.0
    memory_gib: float = 2.0

    def __post_init__(self) -> None:
        if self.kind not in VERIFIERS:
            known = ", ".join(sorted(VERIFIERS))
            raise ConfigError(f"rewards.kind is {self.kind!r}, which is no verifier", hint=f"known kinds: {known}")
        if self.workers < 0:
            raise ConfigError(f"rewards.workers is {self.workers}", hint="use 1 or more, or 0 to score in process")
        for field in ("timeout_seconds", "memory_gib"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"rewards.{field} is {value}", hint="use a finite number above 0")


class RewardPool:
    """Workers that start with the first jobs and stay warm until `close`. Calls from several threads take turns."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._workers: list[WorkerProcess] = []
        self._failed_starts = 0
        self._closed = False

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score_many(self, jobs: Sequence[tuple[str, str]]) -> list[Score]:
        """The scores of `(response, answer)` pairs, in their order.

        Raises RewardError where the pool is closed or no worker can be started; never on account of a job.
        """
        with self._lock:
            if self._closed:
                raise RewardError("the reward pool is closed", hint="score before close(), or make a new pool")
            if self.config.workers == 0:
                return [score(response, answer, kind=self.config.kind) for response, answer in jobs]
            try:
                return self._dispatch(jobs)
            finally:
                # After an interrupt, a late answer to this call must not be taken for one to the next.
                for worker in [worker for worker in self._workers if worker.job is not None]:
                    self._discard(worker)

    def close(self) -> None:
        """Kill the workers and wait for them; may be called again."""
        with self._lock:
            for worker in list(self._workers):
                self._discard(worker)
            self._selector.close()
            self._closed = True

    def _dispatch(self, jobs: Sequence[tuple[str, str]]) -> list[Score]:
        scores: dict[int, Score] = {}
        waiting = deque(range(len(jobs)))
        while len(scores) < len(jobs):
            self._hand_out(jobs, waiting)
            self._start(len(waiting))
            # What has arrived is read before deadlines are looked at: a parent that slept must not punish its workers.
            for key, _ in self._selector.select(self._seconds_to_deadline()):
                self._hear(key.data, scores)
            now = time.monotonic()
            for worker in [worker for worker in self._workers if worker.deadline <= now]:
                self._lose(worker, f"verifier timed out after {self.config.timeout_seconds:g} s", scores)
        return [scores[index] for index in range(len(jobs))]

    def _hand_out(self, jobs: Sequence[tuple[str, str]], waiting: deque[int]) -> None:
        for worker in [worker for worker in self._workers if worker.idle]:
            if not worker.alive():  # it died between two jobs, which is no job's fault
                self._discard(worker)
            elif waiting:
                index = waiting.popleft()
                worker.begin(index, *jobs[index], deadline=time.monotonic() + self.config.timeout_seconds)
                self._selector.modify(worker.socket, worker.events, worker)

    def _start(self, wanted: int) -> None:
        starting = sum(not worker.ready for worker in self._workers)
        for _ in range(min(wanted - starting, self.config.workers - len(self._workers))):
            worker = WorkerProcess(
                self.config.kind,
                self.config.timeout_seconds,
                int(self.config.memory_gib * 2**30),
                deadline=time.monotonic() + START_SECONDS,
            )
            self._workers.append(worker)
            self._selector.register(worker.socket, worker.events, worker)

    def _seconds_to_deadline(self) -> float | None:
        nearest = min((worker.deadline for worker in self._workers), default=math.inf)
        return None if nearest == math.inf else max(0.0, nearest - time.monotonic())

    def _hear(self, worker: WorkerProcess, scores: dict[int, Score]) -> None:
        try:
            message = worker.pump()
            if message is not None:
                self._accept(worker, message, scores)
        except (OSError, ValueError):
            self._lose(worker, "verifier died", scores)
        else:
            self._selector.modify(worker.socket, worker.events, worker)

    def _accept(self, worker: WorkerProcess, message: Any, scores: dict[int, Score]) -> None:
        """Take "ready" or the reply to the worker's job; raises ValueError on any other message."""
        match message:
            case "ready" if not worker.ready:
                worker.ready = True
                self._failed_starts = 0
            case [int(index), float(value), str(reason)] if index == worker.job and math.isfinite(value):
                scores[index] = Score(value, reason)
                worker.job = None
            case _:
                raise ValueError("not the reply to the job")
        worker.deadline = math.inf

    def _lose(self, worker: WorkerProcess, reason: str, scores: dict[int, Score]) -> None:
        """Give up a worker that is late, dead or mad; the job it had, if any, scores 0."""
        if worker.job is not None:
            scores[worker.job] = Score(0.0, reason)
        self._discard(worker)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= START_ATTEMPTS:
                raise RewardError(
                    f"no worker for rewards.kind {self.config.kind!r} could be started in {START_ATTEMPTS} attempts",
                    hint=f"see their error output; is rewards.memory_gib={self.config.memory_gib:g} too low?",
                )

    def _discard(self, worker: WorkerProcess) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.socket)
        worker.kill()
