"""How held-out prompts are evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_fork.errors import ConfigError


@dataclass
class EvaluationConfig:
    """How held-out prompts are evaluated."""

    samples: int = 16
    """Samples a prompt, at the rollout temperature."""
    greedy: bool = True
    """Also decode each prompt once, most likely token first."""
    every: int = 10
    """Steps between evaluations; 0 evaluates only before and after."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.every < 0:
            raise ConfigError(
                f"evaluation.samples={self.samples}, evaluation.every={self.every}: not counts", hint="try 16 and 10"
            )
