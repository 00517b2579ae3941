"""Draws groups as a stream: groups without signal are replaced while others are drawn; groups that a step does not need go on.

Without staleness a step's groups are those that drawing in rounds would give, in whatever order responses arrive: a new prompt
is drawn for each group without signal, so that after m draws n have signal, and m is the smallest such number.
With `max_staleness = k` groups of up to k steps are in flight while the policy trains (see `in_flight`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

from megatron_fork.data import PromptSource
from megatron_fork.errors import RolloutError, StopRequested
from megatron_fork.experience import Trajectory
from megatron_fork.rewards import Failures, RewardPool, Score, ScoreStream
from megatron_fork.rollout.config import RolloutConfig
from megatron_fork.rollout.engine import Completion, Engine, PartialResponse
from megatron_fork.rollout.in_flight import InFlightGroups, PromptGroup
from megatron_fork.rollout.responses import request_for, seed_of, text_of, trajectory_of

# Enough to see why groups have no signal; keeping all of them would keep most of what was drawn.
DROPPED_SHOWN = 32


@dataclass
class RolloutCounts:
    """What was begun and judged for a step; a checkpoint keeps it if the run is stopped in the middle of one."""

    drawn: int = 0
    """Prompts that were begun."""
    judged: int = 0
    """Groups that were finished, with or without signal."""
    kept: int = 0
    """Groups that were finished and had signal."""
    reward: float = 0.0
    """Sum of rewards over all responses of the judged groups."""
    rounds: int = 0
    failures: Failures = field(default_factory=Failures)
    """Failures of verifiers among the responses of the judged groups."""


@dataclass
class StepGroups:
    """A step's groups, the first response of each of the first groups without signal, and the counts."""

    counts: RolloutCounts
    groups: list[PromptGroup] = field(default_factory=list)
    dropped: list[Trajectory] = field(default_factory=list)


class RolloutScheduler:
    """Runs on the first rank, which talks to the engine; the other ranks only follow the engine's iterator."""

    def __init__(
        self,
        config: RolloutConfig,
        engine: Engine,
        source: PromptSource,
        rewards: RewardPool,
        *,
        groups: int,
        seed: int,
    ) -> None:
        self.config = config
        self.engine = engine
        self.source = source
        self.rewards = rewards
        self.seed = seed
        self.in_flight = InFlightGroups(groups, config.max_staleness)
        self.counts = RolloutCounts()
        """Counts of the next step, which this run or an earlier one may have begun."""
        self._step = StepGroups(self.counts)
        self._start = self._version = 0
        self._jobs: dict[int, tuple[Completion, str]] = {}
        self._running = 0
        """Requests whose completions were not fetched yet."""

    def take(self, *, start: int, version: int, stop_point: Callable[[], None] = lambda: None) -> StepGroups:
        """The groups of the next step, for weights of `version`; new prompts are numbered from `start` on.

        If `stop_point` raises `StopRequested`, or the engine fails, everything drawn so far stays in flight.
        """
        step = self._step = StepGroups(self.counts)
        self._start, self._version = start, version
        try:
            self._draw(stop_point)
        except RolloutError:
            self.engine.abort()
            self._put_back()
            raise
        except StopRequested:
            self._put_back()
            raise
        self._keep_partial()
        if not self.stops:
            self._fill(training=True)
        self.counts = RolloutCounts()
        step.groups.sort(key=lambda group: group.draw)
        return step

    def _draw(self, stop_point: Callable[[], None]) -> None:
        self._resume()
        self._fill(training=False)
        with self.rewards.stream() as scoring, closing(self.engine.completions()) as arriving:
            try:
                # Even if all groups are already whole: the ranks that follow wait for the end of an iteration.
                self._arrived(next(arriving), scoring)
                self._take_whole()
                while len(self._step.groups) < self.in_flight.groups_per_step and self.in_flight.groups:
                    stop_point()
                    self._advance(arriving, scoring)
                if self.stops:
                    self._abort(arriving, scoring)
            except StopRequested:
                self._abort(arriving, scoring)
                raise
            finally:  # responses that were finished before a failure count
                for job, score in scoring.drain():
                    self._settle(job, score, replaces=False)

    def _abort(self, arriving: Iterator[Completion | None], scoring: ScoreStream) -> None:
        """Stop the engine, and fetch what it has finished."""
        self.engine.abort()
        while (completion := next(arriving)) is not None:
            self._arrived(completion, scoring)

    def _advance(self, arriving: Iterator[Completion | None], scoring: ScoreStream) -> None:
        """Fetch a response, and judge what has been scored."""
        if self._running:
            self._arrived(next(arriving), scoring)
            scores: Iterable[tuple[int, Score]] = scoring.finished()
        else:
            scores = scoring.drain()  # the engine has nothing left; these scores decide whether it gets more
        whole = [self._settle(job, score) for job, score in scores]
        if any(whole):
            self._take_whole()

    @property
    def stops(self) -> bool:
        """Whether the engine stops while the policy trains; an engine in this process must."""
        return self.config.tail == "stop" and self.config.max_staleness > 0

    def _resume(self) -> None:
        """Submit again what was stopped at the end of the last step or of an earlier run."""
        for group in self.in_flight.groups.values():
            self._submit(group, [sample for sample in range(self.config.samples) if sample in group.begun])

    def _fill(self, *, training: bool) -> None:
        for _ in range(self.in_flight.room(training=training)):
            self._begin(round=1)

    def _begin(self, *, round: int) -> None:
        draw = self._start + self.counts.drawn
        (prompt,) = self.source.draw(1, start=draw, seed=self.seed)
        self.counts.drawn += 1
        self.counts.rounds = max(self.counts.rounds, round)
        group = PromptGroup(draw, prompt, self._version, round)
        self.in_flight.add(group)
        self._submit(group, range(self.config.samples))

    def _submit(self, group: PromptGroup, samples: Iterable[int]) -> None:
        requests = [
            replace(
                request_for(
                    group.prompt,
                    group.draw * self.config.samples + sample,
                    seed_of(self.seed, group.draw, sample),
                    self.config,
                ),
                begun=group.begun.pop(sample, PartialResponse()),
            )
            for sample in samples
        ]
        self._running += len(requests)
        self.engine.submit(requests)

    def _arrived(self, completion: Completion | None, scoring: ScoreStream) -> None:
        if completion is None:
            return
        self._running -= 1
        prompt = self._group_of(completion).prompt
        text = text_of(self.source.tokenizer, completion.tokens)
        self._jobs[scoring.submit(text, prompt.answer)] = (completion, text)

    def _take_whole(self) -> None:
        places = self.in_flight.groups_per_step - len(self._step.groups)
        self._step.groups += self.in_flight.take(self.config.samples, self._version, places)

    def _settle(self, job: int, score: Score, *, replaces: bool = True) -> bool:
        """Add a scored response to its group; a whole group without signal is replaced by another prompt.

        Returns whether the group is whole.
        """
        completion, text = self._jobs.pop(job)
        group = self._group_of(completion)
        group.answers[completion.number % self.config.samples] = trajectory_of(completion, group.prompt, text, score)
        if len(group.answers) < self.config.samples:
            return False
        self.counts.judged += 1
        self.counts.kept += group.has_signal
        self.counts.reward += sum(trajectory.reward for trajectory in group.answers.values())
        self.counts.failures.add((answer.failure, answer.reason) for answer in group.answers.values())
        if self.config.dynamic_sampling and not group.has_signal:
            self.in_flight.remove(group)
            if len(self._step.dropped) < DROPPED_SHOWN:
                self._step.dropped.append(group.answers[0])
            if replaces and group.round < self.config.max_rounds:
                self._begin(round=group.round + 1)
        return True

    def _keep_partial(self) -> None:
        """Keep the partial responses that the engine stopped."""
        for request in self.engine.unfinished():
            self._running -= 1
            group = self.in_flight.groups[request.number // self.config.samples]
            group.begun[request.number % self.config.samples] = request.begun

    def _put_back(self) -> None:
        """Put everything back in flight; responses that were not scored are continued, or drawn from the start."""
        self._keep_partial()
        for group in self._step.groups:
            self.in_flight.add(group)
        self._step = StepGroups(self.counts)
        self._jobs.clear()
        self._running = 0
        for group in self.in_flight.groups.values():
            self._restart_missing(group)

    def _restart_missing(self, group: PromptGroup) -> None:
        for sample in set(range(self.config.samples)) - group.answers.keys():
            group.begun.setdefault(sample, PartialResponse())

    def _group_of(self, completion: Completion) -> PromptGroup:
        return self.in_flight.groups[completion.number // self.config.samples]

    def restore(self, groups: Iterable[PromptGroup], counts: RolloutCounts) -> None:
        """Take over the groups of an earlier run; its unfinished responses continue from their kept tokens."""
        self.counts = replace(counts, failures=replace(counts.failures))
        for group in groups:
            mine = group.copy()
            self._restart_missing(mine)
            self.in_flight.add(mine)

    def groups(self) -> list[PromptGroup]:
        """Copies of the groups in flight, for a checkpoint; later answers do not change them."""
        return [group.copy() for group in self.in_flight.groups.values()]
