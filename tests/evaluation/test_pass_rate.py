"""The reported uncertainty is that of prompts, which samples of one prompt do not shrink."""

import math
import statistics

import pytest

from megatron_fork.errors import ConfigError
from megatron_fork.evaluation import EvaluationConfig, average_at_k


def test_average_and_error_over_prompts() -> None:
    rewards = [1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0]
    means = [0.75, 0.0, 0.5]
    mean, error = average_at_k(rewards, 4)
    assert mean == pytest.approx(statistics.mean(means))
    assert error == pytest.approx(statistics.stdev(means) / math.sqrt(3))


def test_repeating_samples_does_not_sharpen() -> None:
    rewards = [1.0, 0.0, 1.0, 1.0]
    repeated = [reward for reward in rewards for _ in range(8)]
    assert average_at_k(repeated, 8) == pytest.approx(average_at_k(rewards, 1))


def test_one_prompt_has_no_error() -> None:
    assert math.isnan(average_at_k([1.0, 0.0], 2)[1])


def test_bad_counts() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.samples=0"):
        EvaluationConfig(samples=0)
