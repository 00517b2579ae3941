"""The losses, one file each, and the one table that says what each needs: see `table`."""

from megatron_fork.objective.losses.table import LOSSES, Loss, is_custom, loss_named

__all__ = ["LOSSES", "Loss", "is_custom", "loss_named"]
