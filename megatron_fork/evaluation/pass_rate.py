"""Pass rate on held-out prompts: the mean over prompts of the fraction of right samples, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_fork.evaluation.config import EvaluationConfig
from megatron_fork.experience import Prompt, Trajectory
from megatron_fork.rewards import Failures
from megatron_fork.rollout import Collector

# Far above any draw of training: held-out responses use their own random numbers, the same at every evaluation.
_FIRST_DRAW = 1 << 40


@dataclass(frozen=True)
class Evaluation:
    """avg@k with its standard error over prompts, greedy accuracy (NaN if switched off), mean length in tokens."""

    pass_rate: float
    standard_error: float
    greedy: float
    response_tokens: float
    trajectories: list[Trajectory]
    failures: Failures
    """Among all responses, the greedy ones included."""


def evaluate(
    collector: Collector,
    prompts: Sequence[Prompt],
    config: EvaluationConfig,
    *,
    stop_point: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Sample and score `prompts` under the engine's current weights.

    Every rank raises `StopRequested` if `stop_point` raises it on a rank that draws.
    """
    trajectories = collector.sample(prompts, config.samples, first_draw=_FIRST_DRAW, stop_point=stop_point)
    rewards = [trajectory.reward for trajectory in trajectories]
    pass_rate, standard_error = average_at_k(rewards, config.samples)
    failures, greedy = Failures(), math.nan
    failures.add((trajectory.failure, trajectory.reason) for trajectory in trajectories)
    if config.greedy:
        answers = collector.sample(prompts, 1, first_draw=_FIRST_DRAW, greedy=True, stop_point=stop_point)
        greedy = sum(trajectory.reward for trajectory in answers) / len(answers)
        failures.add((trajectory.failure, trajectory.reason) for trajectory in answers)
    tokens = sum(len(trajectory.response) for trajectory in trajectories) / len(trajectories)
    return Evaluation(pass_rate, standard_error, greedy, tokens, trajectories, failures)


def average_at_k(rewards: Sequence[float], samples: int) -> tuple[float, float]:
    """(avg@k, standard error); the error is over prompts, since samples of one prompt depend on its difficulty."""
    means = [math.fsum(rewards[first : first + samples]) / samples for first in range(0, len(rewards), samples)]
    mean = math.fsum(means) / len(means)
    if len(means) == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in means) / (len(means) - 1)
    return mean, math.sqrt(variance / len(means))
