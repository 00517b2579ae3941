"""Which tokens carry gradient: I_t = 1[H_t >= tau], with tau over the whole mini-batch (arXiv 2506.01939, Eq. 6)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import SelectionError
from megatron_fork.selection.config import Config
from megatron_fork.selection.keys import refuse_nan
from megatron_fork.selection.rules import cut_by_score, mark_at_random, mark_by_score, shares
from megatron_fork.selection.segments import Segments, segments_of


@dataclass(frozen=True)
class Selection:
    """The chosen tokens of this rank, and the global counts.

    `threshold` is the entropy at the cut, in nats: the mean over segments, weighted by their candidates, where a scope
    makes several cuts; NaN where entropy decides nothing (`all`, `random`) or there is no candidate.
    """

    mask: Tensor  # bool, the shape of the entropies
    threshold: float
    selected: int
    candidates: int


def select_tokens(
    entropy: Tensor,
    response_mask: Tensor,
    config: Config,
    *,
    group: Group = None,
    segments: Tensor | None = None,
    token_ids: Tensor | None = None,
    step: int = 0,
    tie_tolerance: float = 0.0,
) -> Selection:
    """Mark the tokens that carry gradient.

    Args:
        entropy: float, any shape, nats; values outside `response_mask` are never looked at.
        response_mask: bool, same shape: the candidates. Padding, prompts and filtered responses are False.
        config: the named choices.
        group: ranks that share the mini-batch (data parallel), on whose device the tensors are. All of them call this.
        segments: int64, same shape: the micro-batch or sequence of each token, numbered from 0, for the scopes that cut
            in each. By default one micro-batch, and one sequence a row of the last dimension.
        token_ids: int64, same shape: unique ids that do not depend on the layout, to break ties and seed the random
            choice. By default the place in the concatenation of all ranks' tokens.
        step: number of the update, mixed into the random choice.
        tie_tolerance: entropies this close to the cut, in nats, count as equal to it.

    No candidate on a rank, or on all, is legal: nothing is selected there.

    """
    for name, other in (("response_mask", response_mask), ("segments", segments), ("token_ids", token_ids)):
        _check_column(name, other, entropy)
    if not 0.0 <= tie_tolerance < math.inf:
        raise SelectionError(f"tie_tolerance={tie_tolerance} is not a distance", hint="0 counts equal entropies alone")
    candidate = response_mask.reshape(-1)
    if config.tokens == "all":
        chosen, threshold = candidate.clone(), math.nan
    else:
        parts = segments_of(entropy.shape, segments, candidate, config, group)
        count = parts.count(candidate)
        k = shares(config.ratio, count)
        if config.tokens == "random":
            chosen = mark_at_random(k, candidate, _ids(token_ids, candidate, group), parts, config, step)
            threshold = math.nan
        else:
            sign = -1.0 if config.tokens == "bottom" else 1.0
            score = entropy.detach().reshape(-1).to(torch.float32).mul(sign).where(candidate, -math.inf)
            refuse_nan(score, group)
            ids = _ids(token_ids, candidate, group) if config.rule == "exact_k" else None
            cut = cut_by_score(score, k, count, parts, config)
            chosen = mark_by_score(score, cut, k, candidate, ids, parts, tie_tolerance)
            threshold = sign * _mean(cut, count, parts, group) + 0.0  # -0.0 becomes 0.0
    counts = torch.stack([chosen.count_nonzero(), candidate.count_nonzero()])
    selected, candidates = collectives.all_reduce_sum(counts, group).tolist()
    return Selection(chosen.reshape(entropy.shape), threshold, selected, candidates)


def _mean(cut: Tensor, count: Tensor, parts: Segments, group: Group) -> float:
    """The cuts' mean, weighted by candidates; of cuts that each rank makes for itself, over all ranks of `group`."""
    cut, count = cut[count > 0], count[count > 0]
    if len(cut) == 1 and (parts.group is not None or collectives.size(group) == 1):
        return float(cut)  # to the last bit, so that comparing entropies with it repeats the choice
    sums = torch.stack([(cut * count).sum(), count.sum().double()])
    if parts.group is None:
        collectives.all_reduce_sum(sums, group)
    return float(sums[0] / sums[1])


def _ids(token_ids: Tensor | None, candidate: Tensor, group: Group) -> Tensor:
    """int64 `[tokens]`: those given, or the places in the concatenation of all ranks' tokens."""
    if token_ids is not None:
        return token_ids.reshape(-1).to(torch.int64)
    tokens = collectives.all_gather(torch.tensor([candidate.numel()], device=candidate.device), group)[:, 0]
    first = int(tokens[: collectives.rank(group)].sum())
    return torch.arange(first, first + candidate.numel(), device=candidate.device)


def _check_column(name: str, column: Tensor | None, entropy: Tensor) -> None:
    if column is None:
        return
    if column.shape != entropy.shape:
        raise SelectionError(
            f"entropy has shape {list(entropy.shape)}, {name} {list(column.shape)}", hint="one entry a token"
        )
    is_flag = column.dtype == torch.bool
    if is_flag != (name == "response_mask") or column.is_floating_point() or column.is_complex():
        wanted = "bool" if name == "response_mask" else "an integer type"
        raise SelectionError(f"{name} is {column.dtype}, not {wanted}", hint="convert it before selecting")
