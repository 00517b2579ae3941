"""Accuracy on held-out prompts with its uncertainty."""

from megatron_fork.evaluation.pass_rate import Config, Evaluation, average_at_k, evaluate

__all__ = ["Config", "Evaluation", "average_at_k", "evaluate"]
