"""Accuracy on held-out prompts with its uncertainty."""

from typing import TYPE_CHECKING

from megatron_fork import front_door

if TYPE_CHECKING:
    from megatron_fork.evaluation.config import EvaluationConfig
    from megatron_fork.evaluation.pass_rate import Evaluation, average_at_k, evaluate
else:
    __getattr__ = front_door.opened(__name__, __file__, former={"Config": "EvaluationConfig"})

__all__ = ["EvaluationConfig", "Evaluation", "average_at_k", "evaluate"]
