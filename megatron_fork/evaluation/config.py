"""How held-out prompts are evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_fork.recipe import NonNegativeInt, PositiveInt, Settings


@dataclass
class EvaluationConfig(Settings, room="evaluation"):
    """How held-out prompts are evaluated."""

    samples: PositiveInt = 16
    """Samples per prompt, at the rollout temperature."""
    greedy: bool = True
    """Also decode each prompt once with the most likely tokens."""
    every: NonNegativeInt = 10
    """Steps between evaluations; 0 evaluates only before and after training."""
