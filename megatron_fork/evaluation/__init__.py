"""Pass rate on held-out prompts with its standard error."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.evaluation.config import EvaluationConfig
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
    "average_at_k",
    "bootstrap_interval",
    "check_k",
    "evaluate",
    "majority_at_k",
    "pass_at_k",
    "standard_error",
]
