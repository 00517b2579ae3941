"""Scores many responses in worker processes that are killed when they hang, die or send nonsense.

A verifier may take forever on one hostile answer, and no exception can stop a computation inside an extension module.
So the parent keeps a deadline for each job, and the time-out is SIGKILL. A worker has one job at a time, so the job that killed
a worker is known exactly: it scores 0, and no other job is affected.

Scoring overlaps with the caller's work: a thread runs the workers, jobs are submitted as responses finish (`stream`), and a
full backlog makes the caller wait.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from megatron_fork.rewards.confinement import require_means_for_programs
from megatron_fork.rewards.dispatcher import Dispatcher, Job, Outcome, PoolCounts
from megatron_fork.rewards.failures import FailureWatch
from megatron_fork.rewards.process import WorkerProcess
from megatron_fork.rewards.score import RewardError, Score
from megatron_fork.rewards.verifiers import RUNS_PROGRAMS, find_verifier, score

if TYPE_CHECKING:
    from megatron_fork.rewards.config import RewardsConfig


def check_verifier(config: RewardsConfig) -> None:
    """Raise `RewardError` if the verifier cannot be loaded, or this machine cannot confine the programs that it runs."""
    find_verifier(config.verifier)  # one that cannot be loaded is better found here than in every worker
    if config.kind in RUNS_PROGRAMS:
        require_means_for_programs()


class RewardPool:
    """Workers that start with the first jobs and stay warm until `close`; any thread may use it."""

    def __init__(self, config: RewardsConfig) -> None:
        self.config = config
        self.watch = FailureWatch(config.kind, config.failure_warning)
        check_verifier(config)
        self._closed = False
        start = partial(
            WorkerProcess,
            config.verifier,
            config.timeout_seconds,
            int(config.memory_gib * 2**30),
            confined=config.confined,
        )
        self._dispatcher = Dispatcher(
            lambda deadline: start(deadline=deadline), config.workers, f"rewards.kind {config.kind!r}"
        )

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def counts(self) -> PoolCounts:
        return self._dispatcher.counts

    @property
    def confinement(self) -> list[str]:
        """What the workers cannot do on this machine, in words; empty before the first worker is ready."""
        return self._dispatcher.holds

    def score_many(self, jobs: Sequence[tuple[str, str]]) -> list[Score]:
        """The scores of `(response, answer)` pairs, in their order.

        Raises RewardError if the pool is closed or no worker can be started; never because of a job.
        """
        with self.stream(warm=0) as stream:
            for response, answer in jobs:
                stream.submit(response, answer)
            return stream.results()

    def stream(self, *, warm: int | None = None) -> ScoreStream:
        """Jobs that are submitted one by one while others are scored; `warm` workers start at once, all by default."""
        self._check_open()
        if self.config.workers:
            with self._dispatcher.changed:
                self._dispatcher.want(self.config.workers if warm is None else warm)
        return ScoreStream(self)

    def warm(self, *, seconds: float = 120.0) -> int:
        """Start all workers and wait until they are ready; returns how many are. Raises RewardError if one refuses to work."""
        self._check_open()
        if self.config.workers:
            deadline = time.monotonic() + seconds
            with self._dispatcher.changed:
                self._dispatcher.want(self.config.workers)
                while self._dispatcher.ready() < self.config.workers and time.monotonic() < deadline:
                    if self._dispatcher.refusal is not None:
                        raise self._dispatcher.refusal
                    self._dispatcher.changed.wait(0.1)
        return self._dispatcher.ready()

    def close(self) -> None:
        """Kill the workers and wait for them; may be called again."""
        if not self._closed:
            self._closed = True
            self._dispatcher.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RewardError("the reward pool is closed", hint="score before close(), or make a new pool")


class ScoreStream:
    """Jobs of one caller, numbered from 0 as they are submitted. Leaving the context gives up unfinished jobs.

    `finished` and `drain` give every number once; `results` has all scores in order.
    """

    def __init__(self, pool: RewardPool) -> None:
        self._pool = pool
        self._dispatcher = pool._dispatcher
        self._verifier = pool.config.verifier
        self._jobs: dict[int, Job] = {}
        self._scores: dict[int, Score] = {}
        self._fresh: deque[int] = deque()
        self._error: RewardError | None = None
        self._submitted = 0

    def __enter__(self) -> ScoreStream:
        return self

    def __exit__(self, *_: object) -> None:
        with self._dispatcher.changed:
            if self._jobs:
                self._dispatcher.cancel(list(self._jobs.values()))
                self._jobs.clear()

    def submit(self, response: str, answer: str) -> int:
        """Submit one response; returns its number. Waits while the pool's backlog is full."""
        self._pool._check_open()
        number, self._submitted = self._submitted, self._submitted + 1
        if self._pool.config.workers == 0:
            self._scores[number] = score(response, answer, kind=self._verifier)
            self._fresh.append(number)
            return number
        with self._dispatcher.changed:
            while len(self._dispatcher.waiting) >= self._pool.config.backlog and self._error is None:
                self._dispatcher.changed.wait()
            self._raise_error()
            self._jobs[number] = Job(response, answer, partial(self._finish, number))
            self._dispatcher.put(self._jobs[number])
        return number

    def finished(self) -> Iterator[tuple[int, Score]]:
        """(number, score) of the jobs that are finished by now, without waiting."""
        return iter(self._taken() if self._fresh else ())

    def drain(self) -> Iterator[tuple[int, Score]]:
        """(number, score) of all others, as they finish, until nothing is left."""
        while True:
            with self._dispatcher.changed:
                while not self._fresh and self._jobs and self._error is None:
                    self._dispatcher.changed.wait()
                self._raise_error()
            taken = self._taken()
            if not taken:
                return
            yield from taken

    def results(self) -> list[Score]:
        """The scores of all jobs in the order of their submission; waits for them."""
        with self._dispatcher.changed:
            while self._jobs and self._error is None:
                self._dispatcher.changed.wait()
            self._raise_error()
            self._fresh.clear()
        return [self._scores[number] for number in range(self._submitted)]

    def _finish(self, number: int, outcome: Outcome) -> None:
        """Called once for each job, under the condition."""
        del self._jobs[number]
        if isinstance(outcome, Score):
            self._scores[number] = outcome
            self._fresh.append(number)
        else:
            self._error = outcome

    def _taken(self) -> list[tuple[int, Score]]:
        with self._dispatcher.changed:
            taken = [(number, self._scores[number]) for number in self._fresh]
            self._fresh.clear()
        return taken

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
