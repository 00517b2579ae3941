"""Which tokens carry gradient: I_t = 1[H_t >= tau], with tau over the whole mini-batch (arXiv 2506.01939, Eq. 6).

Tokens that are not candidates get the lowest possible score, so that the k-th largest of all tokens is that of the candidates,
and candidates need not be gathered and put back. `scores` decides what tokens are ranked by: entropies, keys of a random
choice, or a user's function, whose highest values are found just as exactly over all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import ExtensionError, SelectionError
from megatron_fork.recipe import part, told_by_name
from megatron_fork.selection.choices import RULES, CutRule, TokenChoice, token_choice
from megatron_fork.selection.config import SelectionConfig
from megatron_fork.selection.kth import floats_of_keys, global_count, kth_of_numbers, ordered_keys, refuse_nan
from megatron_fork.selection.scores import TokenColumns
from megatron_fork.selection.segments import Segments, segments_of
from megatron_fork.selection.weighing import weigh


@dataclass(frozen=True)
class Selection:
    """The chosen tokens of this rank, and the global counts.

    `threshold` is the entropy at the cut, in nats. If a scope makes several cuts, it is the mean over segments, weighted by
    their candidates; NaN if entropy does not decide (`all`, `random`, a user's scores) or there is no candidate.
    """

    mask: Tensor  # bool, the shape of the entropies
    threshold: float
    selected: int
    candidates: int
    weight: Tensor | None = None
    """float32, the shape of the mask: a factor of each token's objective, of `selection.weights`; None if all are 1."""
    counted: Tensor | None = None
    """bool, the same shape: the tokens that those of the mask stand for, which denominators count; None: the mask."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """What each weighting did, over all ranks."""


def select_tokens(
    entropy: Tensor,
    response_mask: Tensor,
    config: SelectionConfig,
    *,
    group: Group = None,
    segments: Tensor | None = None,
    token_ids: Tensor | None = None,
    step: int = 0,
    tie_tolerance: float = 0.0,
    columns: Mapping[str, Tensor] | None = None,
) -> Selection:
    """Mark the tokens that carry gradient.

    Args:
        entropy: float, any shape, nats; values outside `response_mask` are ignored.
        response_mask: bool, same shape: the candidates. Padding, prompts and filtered responses are False.
        config: the named choices.
        group: ranks that share the mini-batch (data parallel), on whose device the tensors are. All of them must call this.
        segments: int64, same shape: the micro-batch or sequence of each token, numbered from 0, for scopes that cut each
            separately. By default one micro-batch, and one sequence per row of the last dimension.
        token_ids: int64, same shape: unique ids that do not depend on the layout, to break ties and seed the random
            choice. By default the place in the concatenation of all ranks' tokens.
        step: number of the update, mixed into the random choice.
        tie_tolerance: scores this close to the cut count as equal to it; in nats for entropies.
        columns: same shape: further columns for weightings and a user's own scores (`TokenColumns.others`).

    A rank, or all ranks, may have no candidates: nothing is selected there.

    """
    for name, other in (("response_mask", response_mask), ("segments", segments), ("token_ids", token_ids)):
        _check_column(name, other, entropy)
    for name, column in (columns or {}).items():
        _check_shape(name, column, entropy)
    if not 0.0 <= tie_tolerance < math.inf:
        raise SelectionError(
            f"tie_tolerance={tie_tolerance} is not a distance", hint="with 0 only equal entropies count as ties"
        )
    candidate = response_mask.reshape(-1)
    choice = token_choice(config.tokens)
    others = {name: column.detach().reshape(-1) for name, column in (columns or {}).items()}
    tokens = TokenColumns(entropy.detach().reshape(-1), candidate, config, step, group, others, token_ids)
    needs_parts = choice.score is not None or config.weights
    parts = segments_of(entropy.shape, segments, candidate, config, group) if needs_parts else None
    chosen, threshold = _choose(choice, tokens, parts, tie_tolerance)
    weighed = None
    if config.weights:

        def highest(share: float) -> Tensor:
            of_share = replace(tokens, config=replace(config, tokens="top", ratio=share, weights=[]))
            return _choose(token_choice("top"), of_share, parts, tie_tolerance)[0]

        weighed = weigh(tokens, chosen, highest, tie_tolerance)
        chosen = weighed.mask
    counts = torch.stack([chosen.count_nonzero(), candidate.count_nonzero()])
    selected, candidates = collectives.all_reduce_sum(counts, group).tolist()
    mask = chosen.reshape(entropy.shape)
    if weighed is None:
        return Selection(mask, threshold, selected, candidates)
    counted = None if weighed.counted is None else weighed.counted.reshape(entropy.shape)
    weight = weighed.weight.reshape(entropy.shape)
    return Selection(mask, threshold, selected, candidates, weight, counted, weighed.measures)


def _choose(
    choice: TokenChoice, tokens: TokenColumns, parts: Segments | None, tolerance: float
) -> tuple[Tensor, float]:
    """Flags `[tokens]` of the chosen candidates, and the entropy at the cut, NaN if there is none."""
    if choice.score is None:
        return tokens.candidate.clone(), math.nan
    assert parts is not None, "tokens are cut within segments"
    count = parts.count(tokens.candidate)
    k = _shares(tokens.config.ratio, count)
    score = _score(choice, tokens)
    if not score.is_floating_point():
        return _mark_by_key(score, k, tokens, parts), math.nan
    cut = _cut_by_score(score, k, count, parts, tokens.config)
    chosen = _mark_by_score(score, cut, k, tokens, parts, tolerance)
    threshold = _mean(cut, count, parts, tokens.group) if choice.by_entropy else math.nan
    return chosen, -threshold + 0.0 if choice.lowest else threshold  # -0.0 becomes 0.0


def _score(choice: TokenChoice, tokens: TokenColumns) -> Tensor:
    """float32 or integer `[tokens]`, the highest are chosen; tokens that are not candidates get the lowest value."""
    assert choice.score is not None
    name = f"selection.tokens={tokens.config.tokens}"
    columns = {"entropy": tokens.entropy, "candidate": tokens.candidate, **tokens.others}
    versions = {column: tensor._version for column, tensor in columns.items()}
    with told_by_name("selection.tokens", tokens.config.tokens):
        score: Tensor = part(choice.score)(tokens)
    if changed := [column for column, tensor in columns.items() if tensor._version != versions[column]]:
        raise ExtensionError(
            f"{name} changes {', '.join(changed)} in place", hint="compute with copies: tokens are read alone"
        )
    if not isinstance(score, Tensor) or score.shape != tokens.candidate.shape or score.is_complex():
        found = f"{list(score.shape)} {score.dtype}" if isinstance(score, Tensor) else type(score).__name__
        raise SelectionError(
            f"{name} scores {tokens.candidate.numel()} tokens with {found}",
            hint="return one number per token: a tensor [tokens]",
        )
    if not score.is_floating_point():
        keys = score.detach() if score.dtype == torch.int32 else score.detach().to(torch.int64)
        return (~keys if choice.lowest else keys).masked_fill(~tokens.candidate, torch.iinfo(keys.dtype).min)
    ranked = score.detach().to(torch.float32).mul(-1.0 if choice.lowest else 1.0)
    ranked = ranked.where(tokens.candidate, -math.inf)
    refuse_nan(ranked, tokens.group, "" if choice.by_entropy else f"{name}: ")
    return ranked


def _mean(cut: Tensor, count: Tensor, parts: Segments, group: Group) -> float:
    """The cuts' mean, weighted by candidates; if each rank makes its own cuts, over all ranks of `group`."""
    cut, count = cut[count > 0], count[count > 0]
    if len(cut) == 1 and (parts.group is not None or collectives.size(group) == 1):
        return float(cut)  # exact, so that comparing entropies with it repeats the choice
    sums = torch.stack([(cut * count).sum(), count.sum().double()])
    if parts.group is None:
        collectives.all_reduce_sum(sums, group)
    return float(sums[0] / sums[1])


def _check_column(name: str, column: Tensor | None, entropy: Tensor) -> None:
    if column is None:
        return
    _check_shape(name, column, entropy)
    is_flag = column.dtype == torch.bool
    if is_flag != (name == "response_mask") or column.is_floating_point() or column.is_complex():
        wanted = "bool" if name == "response_mask" else "an integer type"
        raise SelectionError(f"{name} is {column.dtype}, not {wanted}", hint="convert it before selecting")


def _check_shape(name: str, column: Tensor, entropy: Tensor) -> None:
    if column.shape != entropy.shape:
        raise SelectionError(
            f"entropy has shape {list(entropy.shape)}, {name} {list(column.shape)}", hint="give one entry per token"
        )


def _rule(config: SelectionConfig) -> CutRule:
    assert config.rule is not None  # the preset sets it
    return RULES[config.rule]


def _cut_by_score(score: Tensor, k: Tensor, count: Tensor, segments: Segments, config: SelectionConfig) -> Tensor:
    """`[segments]` float64: the score at the cut of each, NaN if there is no candidate.

    `score` is float32 `[tokens]`, minus infinity at tokens that are not candidates; `k` and `count` are of the candidates.
    """
    if not _rule(config).interpolates:
        return _kth_largest(score, k, segments)
    # Interpolated like `torch.quantile`, which is limited to 2^24 values.
    place = (1.0 - config.ratio) * (count - 1).clamp(min=0).double()
    below = place.floor()
    rank = count - below.long()
    lower = _kth_largest(score, rank, segments)
    upper = _kth_largest(score, (rank - 1).clamp(min=1).minimum(count), segments)
    cut = lower + (upper - lower) * (place - below)
    return torch.where(cut.isnan(), lower, cut)  # inf - inf and 0 x inf cannot be interpolated


def _mark_by_score(
    score: Tensor, cut: Tensor, k: Tensor, tokens: TokenColumns, segments: Segments, tolerance: float
) -> Tensor:
    """Flags `[tokens]`: candidates at or above the cut of their segment, or exactly k of them if the rule breaks ties."""
    # Compared in the scores' own precision.
    high_enough = (score >= segments.each((cut - tolerance).to(torch.float32))).logical_and_(tokens.candidate)
    if not _rule(tokens.config).breaks_ties:
        return high_enough
    above = (score > segments.each((cut + tolerance).to(torch.float32))).logical_and_(tokens.candidate)
    return _exactly(k, above, high_enough.logical_xor_(above), tokens.token_id, segments)


def _mark_by_key(keys: Tensor, k: Tensor, tokens: TokenColumns, segments: Segments) -> Tensor:
    """Flags `[tokens]` of exactly k candidates per segment: those with the highest integers."""
    cut = segments.each(segments.kth_largest(keys, k))
    tied = (keys == cut).logical_and_(tokens.candidate)
    return _exactly(k, (keys > cut).logical_and_(tokens.candidate), tied, tokens.token_id, segments)


def _shares(ratio: float, count: Tensor) -> Tensor:
    """`ceil(ratio n)` for each count n, at least 1 if n is not 0; exact for the ratio as written (0.7 of 10 is 7)."""
    sizes, place = count.unique(return_inverse=True)
    # In floats 0.7 x 10 may be slightly above 7, and one token more would be taken.
    exact = Fraction(ratio).limit_denominator(10**9)
    k = [max(1, -(-exact.numerator * size // exact.denominator)) if size else 0 for size in sizes.tolist()]
    return torch.tensor(k, dtype=torch.int64, device=count.device)[place]


def _exactly(k: Tensor, above: Tensor, tied: Tensor, ids: Tensor, segments: Segments) -> Tensor:
    """Flags of k tokens per segment: those above the cut and as many of the tied as are missing, lowest ids first."""
    missing = k - segments.count(above)
    if not (segments.count(tied) > missing).any():
        return above | tied
    places = tied.nonzero()[:, 0]
    among_tied = segments.among(places)
    backwards = ~ids.index_select(0, places)  # the complement reverses the order of all integers
    lowest = backwards >= among_tied.each(among_tied.kth_largest(backwards, missing))
    return above.index_fill(0, places[lowest], True)


def _kth_largest(score: Tensor, k: Tensor, segments: Segments) -> Tensor:
    """The k-th largest score of each segment, `[segments]` float64; NaN if k is 0."""
    if segments.of_token is None:
        rank = int(k)
        count = global_count(score, segments.group)
        value = kth_of_numbers(score, rank, count, segments.group) if rank else torch.nan
        return torch.tensor([value], dtype=torch.float64, device=score.device)
    keys = segments.kth_largest(ordered_keys(score), k)
    return torch.where(k > 0, floats_of_keys(keys).double(), torch.nan)
