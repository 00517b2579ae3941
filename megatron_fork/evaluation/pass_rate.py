"""Pass rate on held-out prompts: the mean over prompts of the fraction of right samples, with its standard error."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_fork.distributed import collectives
from megatron_fork.evaluation.config import EvaluationConfig
from megatron_fork.evaluation.estimators import majority_at_k, pass_at_k, standard_error
from megatron_fork.evaluation.votes import ballots
from megatron_fork.experience import Prompt, Trajectory
from megatron_fork.rewards import Failures, RewardPool, answer_in, states_answers
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


@dataclass(frozen=True)
class SetEvaluation:
    """What a run records of a prompt set, by the metric's name, and the responses."""

    metrics: dict[str, float]
    trajectories: list[Trajectory]
    failures: Failures


def evaluate_set(
    collector: Collector,
    name: str,
    prompts: Sequence[Prompt],
    samples: int,
    *,
    rewards: RewardPool | None = None,
    stop_point: Callable[[], None] = lambda: None,
) -> SetEvaluation:
    """Sample and score a set under the engine's current weights, with random numbers of its own. Every rank calls it.

    `rewards`: its verifier, in place of the collector's.
    """
    pool = rewards or collector.rewards
    own = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest())
    trajectories = collector.sample(
        prompts, samples, first_draw=(own + 2) * _FIRST_DRAW, stop_point=stop_point, rewards=pool
    )
    of_prompts = [trajectories[first : first + samples] for first in range(0, len(trajectories), samples)]
    average, error = average_at_k([trajectory.reward for trajectory in trajectories], samples)
    passed = pass_at_k([sum(each.reward > 0 for each in of_prompt) for of_prompt in of_prompts], samples, samples)
    failures = Failures()
    failures.add((trajectory.failure, trajectory.reason) for trajectory in trajectories)
    count = len(trajectories)
    found = {f"avg@{samples}": average, f"avg@{samples}_se": error}
    if samples > 1:
        found |= {f"pass@{samples}": float(passed.mean()), f"pass@{samples}_se": standard_error(passed)}
        found |= _majority(of_prompts, samples, pool, collector.world)
    found |= {
        "response_tokens": sum(len(trajectory.response) for trajectory in trajectories) / count,
        "cut": sum(trajectory.finish_reason == "length" for trajectory in trajectories) / count,
        "failed": sum(trajectory.failure is not None for trajectory in trajectories) / count,
    }
    return SetEvaluation({f"{name}/{metric}": value for metric, value in found.items()}, trajectories, failures)


def _majority(
    of_prompts: Sequence[Sequence[Trajectory]], samples: int, pool: RewardPool, world: collectives.Group
) -> dict[str, float]:
    """maj@k with its error, where responses state answers; the first rank counts for all, since it may need workers."""
    kind = pool.config.verifier
    if not states_answers(kind):
        return {}
    means: list[float] = []
    if collectives.rank(world) == 0:
        votes = ballots([[(answer_in(each.text, kind), each.reward) for each in of] for of in of_prompts], pool)
        means = [majority_at_k(each.votes, each.right, samples, samples)[0] for each in votes]
    means = collectives.broadcast_object(means, world)
    return {f"maj@{samples}": math.fsum(means) / len(means), f"maj@{samples}_se": standard_error(means)}


def average_at_k(rewards: Sequence[float], samples: int) -> tuple[float, float]:
    """(avg@k, standard error); the error is over prompts, since samples of one prompt depend on its difficulty."""
    means = [math.fsum(rewards[first : first + samples]) / samples for first in range(0, len(rewards), samples)]
    mean = math.fsum(means) / len(means)
    if len(means) == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in means) / (len(means) - 1)
    return mean, math.sqrt(variance / len(means))
