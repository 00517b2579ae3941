"""The loop of a run on a simulated clock: the run's own collector, simulated servers, and a trainer of stated speed.

A rank of the trainer may be lost: then a new collector takes up the last checkpoint, as a job that Slurm starts again does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_fork.experience import Prompt
from megatron_fork.rewards import RewardPool, RewardsConfig
from megatron_fork.rollout import Collector, PromptGroup, RolloutConfig, Rollouts
from support.simulated_servers import SimulatedServers


@dataclass(frozen=True)
class Trainer:
    """What a step costs the trainer."""

    statistics_tokens_per_second: float
    update_tokens_per_second: float
    sync_seconds: float
    serial_seconds: float = 0.0
    """What the first rank does alone, between rollout and statistics."""
    checkpoint_seconds: float = 0.0
    restart_seconds: float = 0.0
    """From the loss of a rank to the first token."""


@dataclass
class StepRow:
    """Seconds of a step by part, and what was drawn for it."""

    rollout: float
    statistics: float
    update: float
    serial: float
    sync: float
    checkpoint: float
    trained: int
    """Tokens of the step's responses."""
    generated: float
    """Tokens that the servers drew meanwhile."""
    idle: float
    """Seconds that servers had nothing to draw, all together."""
    drawn: int
    """Prompts."""
    staleness: float
    staleness_max: float
    put_back: int

    @property
    def seconds(self) -> float:
        return self.rollout + self.statistics + self.update + self.serial + self.sync + self.checkpoint


class Prompts:
    """Prompts whose answer is how likely a response is right; a response's text is its seed."""

    class tokenizer:  # noqa: N801
        @staticmethod
        def decode(tokens: Sequence[int], skip_special_tokens: bool) -> str:
            return str(tokens[0])

    def __init__(self, tokens: int, solve_rate: tuple[float, float]) -> None:
        self.tokens, self.solve_rate = (0,) * tokens, solve_rate

    def draw(self, count: int, *, start: int, seed: int) -> list[Prompt]:
        rates = [random.Random(f"{seed}/{draw}").betavariate(*self.solve_rate) for draw in range(start, start + count)]
        return [Prompt(start + place, "", self.tokens, str(rate)) for place, rate in enumerate(rates)]


def verdict(response: str, answer: str) -> bool:
    return random.Random(response).random() < float(answer)


@dataclass(frozen=True)
class _Checkpoint:
    """What a run goes on from."""

    version: int
    drawn: int
    in_flight: list[PromptGroup]


class SimulatedRun:
    """One run, step by step."""

    def __init__(
        self,
        config: RolloutConfig,
        engine: SimulatedServers,
        trainer: Trainer,
        prompts: Prompts,
        *,
        groups: int,
        checkpoint_every: int = 0,
    ) -> None:
        self.config, self.engine, self.trainer = config, engine, trainer
        self.prompts, self.groups, self.checkpoint_every = prompts, groups, checkpoint_every
        self.rewards = RewardPool(RewardsConfig(kind=f"{__name__}:verdict", workers=0))
        self.version = self.drawn = 0
        self.collector = self._new_collector()
        self._saved = _Checkpoint(0, 0, [])

    def _new_collector(self) -> Collector:
        prompts, engine = self.prompts, self.engine
        return Collector(self.config, engine, prompts, self.rewards, groups=self.groups, world=None, seed=0)  # type: ignore[arg-type]

    def step(self) -> StepRow:
        """Raises `TrainerLost` at the engine's `ends_at`, wherever in the step that is."""
        engine, trainer = self.engine, self.trainer
        clock, generated, idle = engine.clock, engine.generated, engine.idle
        before = sum(server.preempted for server in engine.servers)
        rollouts = self.collector.collect(start=self.drawn, version=self.version)
        in_flight = self.collector.in_flight()
        waited = engine.clock - clock
        tokens = sum(len(each.response) for each in rollouts.trajectories)
        parts = {
            "serial": trainer.serial_seconds,
            "statistics": tokens / trainer.statistics_tokens_per_second,
            "update": tokens / trainer.update_tokens_per_second,
        }
        for seconds in parts.values():
            engine.pass_time(seconds)
        self.version += 1
        self.drawn += rollouts.prompts_drawn
        engine.update_weights(self.version, trainer.sync_seconds)
        is_due = self.checkpoint_every > 0 and self.version % self.checkpoint_every == 0
        saving = trainer.checkpoint_seconds if is_due else 0.0
        engine.pass_time(saving)
        if is_due:
            self._saved = _Checkpoint(self.version, self.drawn, in_flight)
        return StepRow(
            rollout=waited,
            **parts,
            sync=trainer.sync_seconds,
            checkpoint=saving,
            trained=tokens,
            generated=engine.generated - generated,
            idle=engine.idle - idle,
            drawn=rollouts.prompts_drawn,
            put_back=sum(server.preempted for server in engine.servers) - before,
            **_staleness(rollouts, self.version - 1),
        )

    def start_again(self, engine: SimulatedServers) -> None:
        """Go on from the last checkpoint with other servers, whose clock begins when the first of the old ones ended."""
        self.engine = engine
        self.version, self.drawn = self._saved.version, self._saved.drawn
        engine.version = self.version
        self.collector = self._new_collector()
        self.collector.restore(self._saved.in_flight)


def _staleness(rollouts: Rollouts, version: int) -> dict[str, float]:
    metrics = rollouts.metrics(version=version)
    return {"staleness": metrics["rollout/staleness"], "staleness_max": metrics["rollout/staleness_max"]}
