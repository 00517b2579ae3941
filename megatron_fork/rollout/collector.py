"""Collects scored groups for a step: groups without signal are replaced, and afterwards every rank holds all trajectories.

The first rank streams requests to servers, or to the engines of all ranks (see `scheduler`). The embedded engine draws in
rounds instead, a part of the requests on each rank: which requests share a batch then does not depend on how fast rewards are
scored, and a run repeats bit for bit. Seeds come from the draw, so that a step's rollouts are the same under every layout.

A round replaces the groups without signal. A few responses take the engine almost as long as many, so it is asked at once for
the prompts that later rounds are likely to need (see `signal_share`). Groups that turn out not to be needed are dropped, and
the next step draws them again, so that a step has the groups that single rounds would have given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from megatron_fork.data import PromptSource
from megatron_fork.distributed import collectives
from megatron_fork.errors import StopRequested
from megatron_fork.experience import Prompt, Trajectory
from megatron_fork.rewards import Failures, RewardPool
from megatron_fork.rollout.config import RolloutConfig
from megatron_fork.rollout.engine import Completion, Engine, Request
from megatron_fork.rollout.engines import engine_kind
from megatron_fork.rollout.in_flight import PromptGroup, has_signal
from megatron_fork.rollout.responses import request_for, seed_of, text_of, trajectory_of
from megatron_fork.rollout.scheduler import DROPPED_SHOWN, RolloutCounts, RolloutScheduler
from megatron_fork.rollout.signal_share import NOTHING_SEEN, SignalShare, draws_to_come


@dataclass(frozen=True)
class Rollouts:
    """The groups of a step; trajectories of one group are next to each other."""

    trajectories: list[Trajectory]
    counts: RolloutCounts
    groups_kept: int
    mean_reward: float
    """Over all responses of the judged groups, those without signal included."""
    groups_in_flight: int = 0
    """Groups that were begun and left for later steps."""
    dropped: list[Trajectory] = field(default_factory=list)
    """The first response of each of the first groups without signal."""
    calls: int = 0
    """How often the engine was asked for groups; 0 for a stream."""
    surplus: int = 0
    """Groups that were drawn and then not needed."""
    expected_share: float = 1.0
    """Share of groups with signal that was expected before the step."""

    @property
    def prompts_drawn(self) -> int:
        return self.counts.drawn

    @property
    def groups_sampled(self) -> int:
        """Groups finished in this step, with or without signal."""
        return self.counts.judged

    @property
    def rounds(self) -> int:
        return self.counts.rounds

    @property
    def failures(self) -> Failures:
        return self.counts.failures

    def metrics(self, *, version: int) -> dict[str, float]:
        """Rollout metrics of a step that trains the weights of `version`; the pass rate counts groups without signal too."""
        tokens = sum(len(trajectory.response) for trajectory in self.trajectories)
        spans = [span for trajectory in self.trajectories for span in trajectory.versions]
        stale = sum((version - span.version) * (span.end - span.start) for span in spans)
        return {
            "rollout/pass_rate": self.mean_reward,
            **self.failures.metrics(),
            "rollout/groups_sampled": self.groups_sampled,
            "rollout/groups_kept": self.groups_kept,
            "rollout/rounds": self.rounds,
            **({"rollout/engine_calls": self.calls, "rollout/groups_thrown_away": self.surplus} if self.calls else {}),
            "rollout/signal_share": self.counts.kept / max(1, self.counts.judged),
            "rollout/signal_share_expected": self.expected_share,
            "rollout/response_tokens": tokens / max(1, len(self.trajectories)),
            "rollout/groups_under_way": self.groups_in_flight,
            "rollout/staleness": stale / max(1, tokens),
            "rollout/staleness_max": max((version - span.version for span in spans), default=0),
        }


class Collector:
    """Draws prompts, generates and scores responses until a step has enough groups with signal."""

    def __init__(
        self,
        config: RolloutConfig,
        engine: Engine,
        source: PromptSource,
        rewards: RewardPool,
        *,
        groups: int,
        world: collectives.Group,
        seed: int,
    ) -> None:
        """`groups`: prompt groups of a step."""
        self.config = config
        self.engine = engine
        self.source = source
        self.rewards = rewards
        self.groups = groups
        self.world = world
        self.seed = seed
        self._draws_in_rounds = engine_kind(config.engine).draws_in_rounds
        streams = engine.is_coordinated or config.max_staleness > 0 or not self._draws_in_rounds
        self._scheduler = (
            RolloutScheduler(config, engine, source, rewards, groups=groups, seed=seed) if streams else None
        )

    def collect(
        self,
        *,
        start: int,
        version: int,
        seen: SignalShare = NOTHING_SEEN,
        stop_point: Callable[[], None] = lambda: None,
    ) -> Rollouts:
        """The groups of the next step, which trains the weights of `version`; new prompts are numbered from `start` on.

        `seen`: what the steps before had of signal; the groups are the same whatever it says.

        If `stop_point` raises `StopRequested` on the first rank, every rank does; what was begun is then `in_flight`. An engine
        that draws in rounds always finishes: a response that is continued later would not repeat bit for bit.
        """
        if self._scheduler is not None:
            finishes = self._draws_in_rounds
            stops = (lambda: None) if finishes else stop_point
            return replace(self._from_stream(self._scheduler, start, version, stops), expected_share=seen.expected())
        return self._from_rounds(start, seen)

    def _from_rounds(self, start: int, seen: SignalShare) -> Rollouts:
        kept: list[list[Trajectory]] = []
        ahead: list[list[Trajectory]] = []  # drawn together with an earlier round, and not judged yet
        counts = RolloutCounts()
        dropped: list[Trajectory] = []
        calls = 0
        while len(kept) < self.groups and counts.rounds < self.config.max_rounds:
            missing = self.groups - len(kept)
            if len(ahead) < missing:
                wanted = self._wanted(missing, counts, seen)
                ahead += self._draw_groups(wanted - len(ahead), start + counts.drawn + len(ahead))
                calls += 1
            judged, ahead = ahead[:missing], ahead[missing:]
            counts.drawn += missing
            counts.judged += missing
            counts.rounds += 1
            counts.reward += sum(trajectory.reward for group in judged for trajectory in group)
            counts.failures.add((trajectory.failure, trajectory.reason) for group in judged for trajectory in group)
            for group in judged:
                counts.kept += has_signal(group)
                if has_signal(group) or not self.config.dynamic_sampling:
                    kept.append(group)
                elif len(dropped) < DROPPED_SHOWN:
                    dropped.append(group[0])
            if not self.config.dynamic_sampling:
                break
        return Rollouts(
            _numbered(kept),
            counts,
            len(kept),
            self._mean(counts),
            dropped=dropped,
            calls=calls,
            surplus=len(ahead),
            expected_share=seen.expected(),
        )

    def _wanted(self, missing: int, counts: RolloutCounts, seen: SignalShare) -> int:
        """How many groups to have drawn when the next round is judged."""
        if not self.config.dynamic_sampling:
            return missing
        share = seen.expected(counts.judged, counts.kept)
        return draws_to_come(missing, share, self.config.max_rounds - counts.rounds)

    def _draw_groups(self, count: int, first_draw: int) -> list[list[Trajectory]]:
        prompts = self.source.draw(count, start=first_draw, seed=self.seed)
        size = self.config.samples
        trajectories = self.sample(prompts, size, first_draw=first_draw)
        return [trajectories[first : first + size] for first in range(0, len(trajectories), size)]

    @property
    def is_stream(self) -> bool:
        """Whether groups can be `in_flight`."""
        return self._scheduler is not None

    def in_flight(self) -> list[PromptGroup]:
        """Groups that were begun and not given to a step, which a checkpoint keeps; on the first rank, none on the others."""
        return self._scheduler.groups() if self._scheduler is not None else []

    def counts(self) -> RolloutCounts:
        """Counts of the next step, if it was begun and then stopped or failed; on the first rank."""
        return self._scheduler.counts if self._scheduler is not None else RolloutCounts()

    def restore(self, groups: Sequence[PromptGroup], counts: RolloutCounts | None = None) -> None:
        """Continue with the groups and the `counts` of an earlier run; those given to the first rank are used."""
        if self._scheduler is not None and collectives.rank(self.world) == 0:
            self._scheduler.restore(groups, counts or RolloutCounts())

    def _from_stream(
        self, scheduler: RolloutScheduler, start: int, version: int, stop_point: Callable[[], None]
    ) -> Rollouts:
        outcome: Rollouts | StopRequested | None = None
        if collectives.rank(self.world) == 0:
            try:
                outcome = self._taken(scheduler, start, version, stop_point)
            except StopRequested as request:
                outcome = request
        else:
            with closing(self.engine.completions()) as nothing:
                for _ in nothing:
                    pass
        received: Rollouts | StopRequested = collectives.broadcast_object(outcome, self.world)
        if isinstance(received, StopRequested):
            raise received
        return received

    def _taken(self, scheduler: RolloutScheduler, start: int, version: int, stop_point: Callable[[], None]) -> Rollouts:
        step = scheduler.take(start=start, version=version, stop_point=stop_point)
        groups = [[group.answers[sample] for sample in range(self.config.samples)] for group in step.groups]
        in_flight = len(scheduler.in_flight.groups)
        return Rollouts(_numbered(groups), step.counts, len(groups), self._mean(step.counts), in_flight, step.dropped)

    def _mean(self, counts: RolloutCounts) -> float:
        return counts.reward / max(1, counts.judged * self.config.samples)

    def sample(
        self,
        prompts: Sequence[Prompt],
        samples: int,
        *,
        first_draw: int,
        greedy: bool = False,
        stop_point: Callable[[], None] = lambda: None,
        rewards: RewardPool | None = None,
    ) -> list[Trajectory]:
        """`samples` scored responses to each prompt, in order; `first_draw` seeds them, `rewards` or the own pool scores them.

        If `stop_point` raises `StopRequested` on a rank that draws, before all are drawn, every rank raises it.
        """

        def request(place: int, sample: int) -> Request:
            seed = seed_of(self.seed, first_draw + place, sample)
            return request_for(prompts[place], place * samples + sample, seed, self.config, greedy=greedy)

        requests = [request(place, sample) for place in range(len(prompts)) for sample in range(samples)]
        answers: list[tuple[Completion, Prompt]] = []
        texts: list[str] = []
        with (rewards or self.rewards).stream() as scoring:  # finished responses are scored while the rest is generated
            for completion in self._answers(self._share(requests), stop_point):
                prompt = prompts[completion.number // samples]
                answers.append((completion, prompt))
                texts.append(text_of(self.source.tokenizer, completion.tokens))
                scoring.submit(texts[-1], prompt.answer)
            scores = scoring.results()
        mine = [
            trajectory_of(completion, prompt, text, score)
            for (completion, prompt), text, score in zip(answers, texts, scores, strict=True)
        ]
        if self.engine.is_coordinated:
            everyone = collectives.broadcast_object(mine, self.world)
        else:
            everyone = [trajectory for share in collectives.gather_objects(mine, self.world) for trajectory in share]
        if len(everyone) < len(requests):
            raise StopRequested(f"after {len(everyone)} of {len(requests)} responses")
        return sorted(everyone, key=lambda trajectory: trajectory.number)

    def _answers(self, requests: Sequence[Request], stop_point: Callable[[], None]) -> Iterator[Completion]:
        """Completions as they finish, up to a stop; a resumed run asks again for what was aborted."""
        try:
            for completion in self.engine.generate(requests):
                yield completion
                stop_point()
        except StopRequested:
            self.engine.abort()
            self.engine.unfinished()

    def _share(self, requests: Sequence[Request]) -> Sequence[Request]:
        """The requests that this rank draws: its part of them, or all on the first rank."""
        rank, ranks = collectives.rank(self.world), collectives.size(self.world)
        if self.engine.is_coordinated:
            return requests if rank == 0 else []
        return requests[rank::ranks]


def _numbered(groups: Sequence[Sequence[Trajectory]]) -> list[Trajectory]:
    """The trajectories of all groups, numbered by their place in the step."""
    return [replace(t, number=number) for number, t in enumerate(t for group in groups for t in group)]
