"""Pass rate on held-out prompts with its standard error."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.evaluation.config import EvaluationConfig, PromptSet, held_out_set, prompt_sets
    from megatron_fork.evaluation.estimators import (
        LEVEL,
        RESAMPLES,
        bootstrap_interval,
        check_k,
        majority_at_k,
        pass_at_k,
        standard_error,
    )
    from megatron_fork.evaluation.pass_rate import Evaluation, average_at_k, evaluate
else:
    __getattr__ = opened(__name__, __file__, former={"Config": "EvaluationConfig"})

__all__ = [
    "LEVEL",
    "RESAMPLES",
    "Evaluation",
    "EvaluationConfig",
    "PromptSet",
    "average_at_k",
    "bootstrap_interval",
    "check_k",
    "evaluate",
    "held_out_set",
    "majority_at_k",
    "pass_at_k",
    "prompt_sets",
    "standard_error",
]
