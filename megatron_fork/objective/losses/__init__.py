"""The losses, one file each, and `table` with what each of them needs."""

from megatron_fork.objective.losses.table import LOSSES, Loss, loss_named

__all__ = ["LOSSES", "Loss", "loss_named"]
