"""The critic's loss for `advantage=gae`: squared error of the returns, with values clipped around the old ones."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_fork.errors import ObjectiveError
from megatron_fork.objective.config import ObjectiveConfig
from megatron_fork.objective.loss import PolicyLoss
from megatron_fork.objective.selected_tokens import refuse_other_shapes, refuse_other_than_flags


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    config: ObjectiveConfig,
    *,
    normalizer: float,
    weight: Tensor | None = None,
) -> PolicyLoss:
    """Half the sum over marked tokens of weight x max((V - R)^2, (clip(V) - R)^2) / normalizer.

    Args:
        values: `[...]` float32, of the critic being trained; carries the gradient.
        old_values: `[...]` float32, of the critic that `generalized_advantages` used.
        returns: `[...]` float32, of `generalized_advantages`.
        mask: `[...]` bool; unmarked tokens enter nothing.
        config: clip(V) is within `gae.value_clip` of the old value; 0 for the plain squared error.
        normalizer: global number to divide by; `token_weights` gives it.
        weight: `[...]` float32, a factor of each token, of `token_weights`; 1 by default.

    Metrics are sums, like those of `policy_loss`. 1 - Var(error) / Var(return) is the explained variance: both follow
    from the sums and the sums of squares.

    """
    if not normalizer > 0.0:
        raise ObjectiveError(f"normalizer={normalizer} is not positive", hint="token_weights gives at least 1")
    columns = {"old_values": old_values, "returns": returns, "mask": mask, "weight": weight}
    refuse_other_shapes("values", values, columns)
    refuse_other_than_flags({"mask": mask})
    value, old, target = values[mask], old_values[mask].detach(), returns[mask].detach()
    if not torch.isfinite(target).all():
        raise ObjectiveError("returns holds a value that is not finite", hint="check the rewards and the critic")
    error = value - target
    square = error.square()
    clipped_square, beyond = square, torch.zeros_like(mask[mask])
    if config.gae.value_clip:
        moved = value - old
        # Within the bounds the clipped value is the value itself: the squares would differ only by rounding.
        beyond = moved.abs() > config.gae.value_clip
        clamped = moved.clamp(-config.gae.value_clip, config.gae.value_clip)
        clipped_square = torch.where(beyond, (old + clamped - target).square(), square)
    loss = torch.maximum(square, clipped_square) / 2.0
    if weight is not None:
        loss = loss * weight[mask].detach()
    sums = {
        "value_tokens": torch.ones_like(value),
        "value_clipped": beyond & (clipped_square > square),
        "value_error": error,
        "value_error_square": square,
        "return": target,
        "return_square": target.square(),
    }
    metrics = {name: column.detach().sum(dtype=value.dtype) for name, column in sums.items()}
    return PolicyLoss(loss.sum() / normalizer, metrics)
