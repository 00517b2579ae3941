"""The losses, one file each, and the one table that says what each needs: see `table`."""

from megatron_fork.objective.losses.table import LOSSES, Loss, loss_named

__all__ = ["LOSSES", "Loss", "loss_named"]
