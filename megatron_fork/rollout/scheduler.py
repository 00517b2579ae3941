"""Groups drawn as a stream: what has no signal is replaced while others are drawn, and what the step does not need goes on.

Without staleness a step's groups are those that drawing in rounds would give, under every order of arrival: a new prompt is
drawn for each group without signal, so that after m draws n have signal, and m is the smallest such number.
With `max_staleness = k` up to k steps of groups are under way while the policy trains (see `in_flight`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from megatron_fork.data import PromptSource
from megatron_fork.errors import RolloutError
from megatron_fork.experience import Trajectory
from megatron_fork.rewards import Failures, RewardPool, Score, ScoreStream
from megatron_fork.rollout.config import RolloutConfig
from megatron_fork.rollout.engine import Completion, Engine, PartialResponse
from megatron_fork.rollout.in_flight import InFlightGroups, PromptGroup
from megatron_fork.rollout.responses import request_for, seed_of, text_of, trajectory_of

# Enough to see why groups have no signal; all of them would be most of what was drawn.
DROPPED_SHOWN = 32


@dataclass
class Tally:
    """What was begun and judged for a step; a checkpoint keeps it where the run is stopped in the middle."""

    drawn: int = 0
    """Prompts that were begun."""
    judged: int = 0
    """Groups that were finished, with or without signal."""
    reward: float = 0.0
    """Sum over all responses of the judged groups."""
    rounds: int = 0
    failures: Failures = field(default_factory=Failures)
    """Among the responses of the judged groups."""

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Tally:
        """What a checkpoint's manifest kept; earlier ones knew nothing of failures."""
        return cls(**{**record, "failures": Failures(**record.get("failures", {}))})


@dataclass
class Harvest:
    """What a step got."""

    tally: Tally
    groups: list[PromptGroup] = field(default_factory=list)
    was_stopped: bool = False
    """Before there were enough groups: all of them are still under way."""
    dropped: list[Trajectory] = field(default_factory=list)
    """The first response of each of the first groups without signal."""


class RolloutScheduler:
    """On the first rank, which speaks to the engine; the others only follow its iterator."""

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
        self._jobs: dict[int, tuple[Completion, str]] = {}
        self._running = 0
        """Requests that the engine has, or whose completions were not fetched yet."""
        self.tally = Tally()
        """Of the next step, where it was begun: by this run, which was stopped, or by an earlier one."""

    def take(self, *, start: int, version: int, should_stop: Callable[[], bool] = lambda: False) -> Harvest:
        """The groups of the next step, for weights of `version`; new prompts are drawn from number `start` on.

        Where it `should_stop`, or the engine fails, what there is stays under way, as far as it came.
        """
        harvest, self.tally = Harvest(self.tally), Tally()
        try:
            self._draw(harvest, start, version, should_stop)
        except RolloutError:
            self.engine.abort()
            harvest.was_stopped = True
            raise
        finally:
            self._keep_begun()
            if harvest.was_stopped:
                self.tally = harvest.tally
                self._put_back(harvest)
        if not self.stops and not harvest.was_stopped:
            self._fill(harvest, start, version, training=True)
        harvest.groups.sort(key=lambda group: group.draw)
        return harvest

    def _draw(self, harvest: Harvest, start: int, version: int, should_stop: Callable[[], bool]) -> None:
        self._resume()
        self._fill(harvest, start, version, training=False)
        with self.rewards.stream() as scoring, closing(self.engine.completions()) as arriving:
            try:
                # Also where all groups are there already: ranks that follow wait for the end of what has been begun.
                self._arrived(next(arriving), scoring)
                self._take_whole(harvest, version)
                while len(harvest.groups) < self.in_flight.groups_per_step and self.in_flight.groups:
                    if should_stop():
                        harvest.was_stopped = True
                        break
                    self._go_on(harvest, arriving, scoring, start, version)
                if self.stops or harvest.was_stopped:
                    self.engine.abort()
                    while (completion := next(arriving)) is not None:
                        self._arrived(completion, scoring)
            finally:  # what was answered before a failure counts
                for job, score in scoring.drain():
                    self._settle(job, score, harvest, start, version, replaces=False)

    def _go_on(
        self,
        harvest: Harvest,
        arriving: Iterator[Completion | None],
        scoring: ScoreStream,
        start: int,
        version: int,
    ) -> None:
        """Fetch a response, and judge what has been scored."""
        if self._running:
            self._arrived(next(arriving), scoring)
            scores: Iterable[tuple[int, Score]] = scoring.finished()
        else:
            scores = scoring.drain()  # the engine has nothing left: whether it gets more depends on these
        whole = [self._settle(job, score, harvest, start, version) for job, score in scores]
        if any(whole):
            self._take_whole(harvest, version)

    @property
    def stops(self) -> bool:
        """Whether the engine rests while the policy trains; an engine in this process must."""
        return self.config.tail == "stop" and self.config.max_staleness > 0

    def _resume(self) -> None:
        """Hand in again what was stopped at the end of the last step, or by the end of an earlier run."""
        for group in self.in_flight.groups.values():
            self._submit(group, [sample for sample in range(self.config.samples) if sample in group.begun])

    def _fill(self, harvest: Harvest, start: int, version: int, *, training: bool) -> None:
        for _ in range(self.in_flight.room(training=training)):
            self._begin(harvest, start, version, round=1)

    def _begin(self, harvest: Harvest, start: int, version: int, *, round: int) -> None:
        draw = start + harvest.tally.drawn
        (prompt,) = self.source.draw(1, start=draw, seed=self.seed)
        harvest.tally.drawn += 1
        harvest.tally.rounds = max(harvest.tally.rounds, round)
        group = PromptGroup(draw, prompt, version, round)
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

    def _take_whole(self, harvest: Harvest, version: int) -> None:
        places = self.in_flight.groups_per_step - len(harvest.groups)
        harvest.groups += self.in_flight.take(self.config.samples, version, places)

    def _settle(
        self, job: int, score: Score, harvest: Harvest, start: int, version: int, *, replaces: bool = True
    ) -> bool:
        """One more response is judged; a whole group without signal leaves, and another prompt takes its place.

        Returns whether its group is whole.
        """
        completion, text = self._jobs.pop(job)
        group = self._group_of(completion)
        group.answers[completion.number % self.config.samples] = trajectory_of(completion, group.prompt, text, score)
        if len(group.answers) < self.config.samples:
            return False
        harvest.tally.judged += 1
        harvest.tally.reward += sum(trajectory.reward for trajectory in group.answers.values())
        harvest.tally.failures.add((answer.failure, answer.reason) for answer in group.answers.values())
        if self.config.dynamic_sampling and not group.has_signal:
            self.in_flight.remove(group)
            if len(harvest.dropped) < DROPPED_SHOWN:
                harvest.dropped.append(group.answers[0])
            if replaces and group.round < self.config.max_rounds:
                self._begin(harvest, start, version, round=group.round + 1)
        return True

    def _keep_begun(self) -> None:
        """What was stopped goes on with what it has."""
        for request in self.engine.unfinished():
            self._running -= 1
            group = self.in_flight.groups[request.number // self.config.samples]
            group.begun[request.number % self.config.samples] = request.begun

    def _put_back(self, harvest: Harvest) -> None:
        """All is under way again; what was not judged is drawn again, where it was not begun from the start."""
        for group in harvest.groups:
            self.in_flight.add(group)
        harvest.groups = []
        self._jobs.clear()
        self._running = 0
        for group in self.in_flight.groups.values():
            self._begin_missing(group)

    def _begin_missing(self, group: PromptGroup) -> None:
        for sample in set(range(self.config.samples)) - group.answers.keys():
            group.begun.setdefault(sample, PartialResponse())

    def _group_of(self, completion: Completion) -> PromptGroup:
        return self.in_flight.groups[completion.number // self.config.samples]

    def restore(self, groups: Iterable[PromptGroup], tally: Tally) -> None:
        """Groups of an earlier run; responses that had not been finished begin where that run kept them."""
        self.tally = tally
        for group in groups:
            self._begin_missing(group)
            self.in_flight.add(group)

    def groups(self) -> list[PromptGroup]:
        """What is under way now, to be kept with a checkpoint; the lists are copies."""
        return [
            replace(group, answers=dict(group.answers), begun=dict(group.begun))
            for group in self.in_flight.groups.values()
        ]
