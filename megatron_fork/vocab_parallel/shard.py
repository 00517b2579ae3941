"""One rank's share of the softmax statistics, and the exact merge over ranks.

Each rank sweeps its columns once and keeps four numbers a token, relative to its own maximum m:

    m = max_j x_j      s = sum_j e^(x_j - m)      u = sum_j (x_j - m) e^(x_j - m)      x_target (0 on other ranks)

With M = max over ranks of m and w = e^(m - M), the sums over the whole vocabulary are S = sum w s and
U = sum w (u + (m - M) s), so that

    log Z = M + ln S          logprob = x_target - M - ln S       entropy = ln S - U / S       [nats]

Four floats a token on the wire, in one collective; no rank ever sees another's logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_fork.distributed import collectives

# e^-1e4 is 0 in every float type, and 0 * -1e4 is 0 where 0 * -inf would be NaN: exact for columns at -inf.
_LOWEST_EXPONENT = -1e4


@dataclass(frozen=True)
class VocabularyShard:
    """The columns that this rank holds: global ids `[offset, offset + columns)`; padding past the vocabulary is left out."""

    offset: int
    columns: int
    group: collectives.Group

    @classmethod
    def of(cls, shard_size: int, vocab_size: int | None, group: collectives.Group) -> VocabularyShard:
        offset = collectives.rank(group) * shard_size
        end = shard_size * collectives.size(group) if vocab_size is None else vocab_size
        return cls(offset, min(max(end - offset, 0), shard_size), group)

    def locate(self, targets_t: Tensor) -> tuple[Tensor, Tensor]:
        """Local column of each target (0 where another rank holds it), and whether this rank holds it."""
        local_t = targets_t - self.offset
        held_t = (local_t >= 0) & (local_t < self.columns)
        return torch.where(held_t, local_t, 0), held_t


def sweep(scaled_tv: Tensor, column_t: Tensor, held_t: Tensor) -> Tensor:
    """`[4, tokens]` of m, s, u and the target's logit from logits already divided by the temperature; overwrites them."""
    if scaled_tv.shape[1] == 0:
        nothing_t = scaled_tv.new_zeros(scaled_tv.shape[0])
        return torch.stack([torch.full_like(nothing_t, -torch.inf), nothing_t, nothing_t, nothing_t])
    target_t = scaled_tv.gather(1, column_t[:, None])[:, 0].masked_fill(~held_t, 0.0)
    maximum_t = scaled_tv.amax(1)
    exponent_tv = scaled_tv.sub_(maximum_t[:, None]).clamp_(min=_LOWEST_EXPONENT)
    weight_tv = exponent_tv.exp()
    sum_t = weight_tv.sum(1)
    weighted_t = torch.linalg.vecdot(weight_tv, exponent_tv)
    return torch.stack([maximum_t, sum_t, weighted_t, target_t])


def merge(partial_4t: Tensor, group: collectives.Group) -> tuple[Tensor, Tensor, Tensor]:
    """(log Z, logprob, entropy), each `[tokens]`, from every rank's `sweep`: one all-gather of four floats a token."""
    maximum_rt, sum_rt, weighted_rt, target_rt = collectives.all_gather(partial_4t, group).unbind(1)
    maximum_t = maximum_rt.amax(0)
    distance_rt = (maximum_rt - maximum_t).clamp(min=_LOWEST_EXPONENT)
    share_rt = distance_rt.exp()
    sum_t = (share_rt * sum_rt).sum(0)
    weighted_t = (share_rt * (weighted_rt + distance_rt * sum_rt)).sum(0)
    log_sum_t = sum_t.log()
    log_z_t = maximum_t + log_sum_t
    # Not x_target - log Z: far from 0 that would round the difference to the resolution of the logits.
    logprob_t = target_rt.sum(0) - maximum_t - log_sum_t
    return log_z_t, logprob_t, log_sum_t - weighted_t / sum_t


def logits_gradient(
    scaled_tv: Tensor,
    column_t: Tensor,
    held_t: Tensor,
    log_z_t: Tensor,
    entropy_t: Tensor,
    logprob_gradient_t: Tensor,
    entropy_gradient_t: Tensor | None,
) -> Tensor:
    """Gradient of the shard's temperature-scaled logits, in one sweep; overwrites `scaled_tv`.

    d logprob / d x_j = [j = target] - p_j and d entropy / d x_j = -p_j (ln p_j + H), so both upstream gradients enter as
    a multiple of p_j: -(g_logprob + g_entropy (ln p_j + H)) p_j.
    """
    log_p_tv = scaled_tv.sub_(log_z_t[:, None]).clamp_(min=_LOWEST_EXPONENT)
    if entropy_gradient_t is None:
        gradient_tv = log_p_tv.exp_().mul_(-logprob_gradient_t[:, None])
    else:
        p_tv = log_p_tv.exp()
        factor_tv = (
            log_p_tv.add_(entropy_t[:, None]).mul_(entropy_gradient_t[:, None]).add_(logprob_gradient_t[:, None])
        )
        gradient_tv = factor_tv.mul_(p_tv).neg_()
    own_t = logprob_gradient_t.masked_fill(~held_t, 0.0)
    return gradient_tv.scatter_add_(1, column_t[:, None], own_t[:, None]) if scaled_tv.shape[1] else gradient_tv
