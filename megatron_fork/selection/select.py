"""Which tokens carry gradient: I_t = 1[H_t >= tau], with tau over the whole mini-batch (arXiv 2506.01939, Eq. 6)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import SelectionError
from megatron_fork.selection.config import Config
from megatron_fork.selection.kth import kth_largest, kth_largest_key

_TOKEN_ID_BITS = 62
_RANDOM_BITS = 31


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
        group: ranks that share the mini-batch (data parallel).
        segments: int64, same shape: the micro-batch or sequence of each token, for the scopes that cut in each. By
            default one micro-batch, and one sequence a row of the last dimension.
        token_ids: int64, same shape: ids that do not depend on the layout, to break ties and seed the random choice.
            By default the place in the concatenation of all ranks' tokens.
        step: number of the update, mixed into the random choice.
        tie_tolerance: entropies this close to the cut, in nats, count as equal to it.

    No candidate on a rank, or on all, is legal: nothing is selected there.

    """
    if entropy.shape != response_mask.shape:
        raise SelectionError(
            f"entropy has shape {list(entropy.shape)}, response_mask {list(response_mask.shape)}",
            hint="one flag a token",
        )
    candidate = response_mask.reshape(-1)
    flat = entropy.detach().reshape(-1).to(torch.float32)
    ids = _default_ids(flat, group) if token_ids is None else token_ids.reshape(-1)
    wide = config.scope in ("minibatch", "microbatch_global")
    cut_group = group if wide else None
    chosen = torch.zeros_like(candidate)
    weighted_cuts, cut_candidates = 0.0, 0
    for segment in _segments(entropy.shape, segments, config, candidate, cut_group):
        tokens = (candidate & segment).nonzero()[:, 0]
        mask, cut, count = _cut(flat[tokens], ids[tokens], config, cut_group, step, tie_tolerance)
        chosen[tokens] = mask
        if not math.isnan(cut):
            weighted_cuts, cut_candidates = weighted_cuts + cut * count, cut_candidates + count
    counts = torch.tensor([chosen.sum(), candidate.sum()], dtype=torch.float64, device=flat.device)
    cuts = torch.tensor([weighted_cuts, cut_candidates], dtype=torch.float64, device=flat.device)
    collectives.all_reduce_sum(counts, group)
    if not wide:
        collectives.all_reduce_sum(cuts, group)
    return Selection(
        mask=chosen.reshape(entropy.shape),
        threshold=float(cuts[0] / cuts[1]) if cuts[1] else math.nan,
        selected=int(counts[0]),
        candidates=int(counts[1]),
    )


def _segments(
    shape: torch.Size, segments: Tensor | None, config: Config, candidate: Tensor, group: Group
) -> Iterator[Tensor]:
    """A bool mask of tokens for every cut; all ranks of `group` see the same number of cuts."""
    if config.scope == "minibatch" or (segments is None and config.scope != "sequence"):
        yield torch.ones_like(candidate)
        return
    if segments is None:
        rows = math.prod(shape[:-1])
        segments = torch.arange(rows, device=candidate.device).repeat_interleave(shape[-1])
    flat = segments.reshape(-1)
    last = torch.tensor(int(flat.max()) if flat.numel() else -1, device=candidate.device)
    for segment in range(int(collectives.all_reduce_max(last, group)) + 1):
        yield flat == segment


def _cut(
    entropy: Tensor, ids: Tensor, config: Config, group: Group, step: int, tolerance: float
) -> tuple[Tensor, float, int]:
    """(mask, entropy at the cut, global candidates) of one segment."""
    count = _global_count(entropy, group)
    if config.tokens == "all" or count == 0:
        return torch.ones_like(entropy, dtype=torch.bool), math.nan, count
    k = max(1, math.ceil(round(config.ratio * count, 9)))
    if config.tokens == "random":
        keys = _scrambled(ids, config.seed, step)
        cut, _ = kth_largest_key(keys, k, bits=_RANDOM_BITS, group=group)
        return _exactly_k(keys > cut, keys == cut, ids, k, group), math.nan, count
    sign = 1.0 if config.tokens == "top" else -1.0
    score = entropy * sign
    value = _quantile(score, config, count, group) if config.rule == "quantile" else kth_largest(score, k, group=group)
    if config.rule == "exact_k":
        above = score > value + tolerance
        return _exactly_k(above, ~above & (score >= value - tolerance), ids, k, group), sign * value, count
    return score >= value - tolerance, sign * value, count


def _global_count(flags_or_values: Tensor, group: Group) -> int:
    count = torch.tensor(flags_or_values.numel(), device=flags_or_values.device)
    return int(collectives.all_reduce_sum(count, group))


def _quantile(score: Tensor, config: Config, count: int, group: Group) -> float:
    """The (1 - ratio) quantile with linear interpolation, as `torch.quantile` defines it, over all ranks."""
    place = (1.0 - config.ratio) * (count - 1)
    below = math.floor(place)
    lower = kth_largest(score, count - below, group=group)
    upper = kth_largest(score, max(count - below - 1, 1), group=group)
    return lower + (upper - lower) * (place - below)


def _exactly_k(above: Tensor, tied: Tensor, ids: Tensor, k: int, group: Group) -> Tensor:
    """Exactly k of all ranks' tokens: those above the cut, and of the tied ones as many as are missing, lowest ids first."""
    wanted = k - _global_count(above.nonzero(), group)
    backwards = (1 << _TOKEN_ID_BITS) - 1 - ids
    last, _ = kth_largest_key(backwards[tied], wanted, bits=_TOKEN_ID_BITS, group=group)
    return above | (tied & (backwards >= last))


def _scrambled(ids: Tensor, seed: int, step: int) -> Tensor:
    """31 pseudo-random bits for each id: a multiply-and-shift mix, the same on every device and layout."""
    mixed = ids + ((seed * 1_000_003 + step) * 0x9E3779B1 & 0x7FFFFFFFFFFFFFFF)
    for factor in (0x45D9F3B3335B369, 0x3C6EF372FE94F82B):
        mixed = (mixed ^ (mixed >> 29)) * factor
    return (mixed ^ (mixed >> 32)) & 0x7FFFFFFF


def _default_ids(flat: Tensor, group: Group) -> Tensor:
    counts = collectives.all_gather(torch.tensor([flat.numel()], device=flat.device), group)[:, 0]
    return torch.arange(flat.numel(), device=flat.device) + int(counts[: collectives.rank(group)].sum())
