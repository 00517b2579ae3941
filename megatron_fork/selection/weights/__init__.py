"""What multiplies the objective of chosen tokens: one file each, and `table` with what each of them needs."""

from megatron_fork.selection.weights.table import WEIGHTINGS, Weighting, weighting_named

__all__ = ["WEIGHTINGS", "Weighting", "weighting_named"]
