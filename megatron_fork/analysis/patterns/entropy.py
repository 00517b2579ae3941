"""The entropy pattern of traces: distribution, percentiles, tokens, places in the response, right and wrong responses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megatron_fork.analysis.counting import DECIDED, EDGES, Array, log_bins
from megatron_fork.analysis.patterns.sums import PositionSums, TokenMean, TokenSums, positions
from megatron_fork.analysis.tokens import visible
from megatron_fork.errors import TraceError
from megatron_fork.traces import TraceFiles, Traces

PERCENTILES = (5, 10, 20, 25, 30, 40, 50, 60, 70, 75, 80, 85, 90, 95, 99, 99.9)
GROUPS = ("all", "right", "wrong", "unjudged")
"""A response is right if its reward is above 0, unjudged if it has none."""


@dataclass(frozen=True)
class Distribution:
    """Entropies of some tokens, in nats; NaN where there is no token."""

    responses: int
    tokens: int
    mean: float
    low: float
    """Share of tokens below `DECIDED`."""
    percentiles: dict[float, float]
    counts: Array
    """`[len(EDGES)]`: tokens below the first of `EDGES`, then between each and the next; the last has all above."""


@dataclass(frozen=True)
class EntropyPattern:
    """What traces show of their entropies."""

    groups: dict[str, Distribution]
    """By `GROUPS`, only those that have tokens; `all` always."""
    highest: list[TokenMean]
    lowest: list[TokenMean]
    minimum_count: int
    ranked: int
    """Tokens that occur at least so often."""
    distinct: int
    positions: dict[str, PositionSums]
    """By `GROUPS`."""
    left_out: int
    """Responses without entropies."""
    temperatures: tuple[float, ...]
    models: tuple[str, ...]


def entropy_pattern(files: TraceFiles, *, minimum_count: int = 100, rows: int = 20) -> EntropyPattern:
    """The pattern of all responses that have entropies; reads the files once and needs about 8 bytes a token.

    Args:
        files: the traces.
        minimum_count: how often a token must occur to be ranked by its mean entropy.
        rows: tokens that are kept from each end of the ranking.

    Raises:
        TraceError: no response has an entropy, or a file is damaged.

    """
    entropies: dict[str, list[Array]] = {name: [] for name in GROUPS[1:]}
    responses = dict.fromkeys(GROUPS[1:], 0)
    places = {name: PositionSums() for name in GROUPS}
    tokens, left_out, origins = TokenSums(), 0, []
    for part in files.parts(["tokens", "token_texts", "entropy", "reward"]):
        known = part.having("entropy")
        left_out += len(part) - len(known)
        if not len(known):
            continue
        origins.append(part.origin)
        entropy_t = known.flat("entropy")
        tokens.add(known, known.flat("tokens"), entropy_t)
        position_t, length_t = positions(known.lengths)
        places["all"].add(position_t, length_t, entropy_t)
        for name, responses_of, mask_t in _by_correctness(known):
            responses[name] += responses_of
            entropies[name].append(entropy_t[mask_t])
            places[name].add(position_t[mask_t], length_t[mask_t], entropy_t[mask_t])
    if not origins:
        raise TraceError(
            f"{files.files[0]}: none of the {files.responses:,} responses has entropies",
            hint="compute them with `megatron-fork analyze rescore`",
        )
    groups = {"all": _distribution([each for name in GROUPS[1:] for each in entropies[name]], sum(responses.values()))}
    groups |= {name: _distribution(entropies[name], responses[name]) for name in GROUPS[1:] if responses[name]}
    ranked = tokens.ranked(minimum_count)
    ends = min(rows, -(-len(ranked) // 2))
    return EntropyPattern(
        groups=groups,
        highest=ranked[:ends],
        lowest=ranked[max(ends, len(ranked) - ends) :][::-1],
        minimum_count=minimum_count,
        ranked=len(ranked),
        distinct=tokens.distinct,
        positions={name: places[name] for name in groups},
        left_out=left_out,
        temperatures=tuple(sorted({origin.temperature for origin in origins})),
        models=tuple(sorted({visible(origin.model) for origin in origins})),
    )


def _by_correctness(part: Traces) -> Iterator[tuple[str, int, Array]]:
    """(group, its responses, which tokens are theirs) of each group that the part has."""
    rewards = np.array([np.nan if reward is None else reward for reward in part.values("reward")])
    for name, chosen in (("right", rewards > 0), ("wrong", rewards <= 0), ("unjudged", np.isnan(rewards))):
        if chosen.any():
            yield name, int(chosen.sum()), np.repeat(chosen, part.lengths)


def _distribution(parts: list[Array], responses: int) -> Distribution:
    tokens = sum(map(len, parts))
    if not tokens:
        nothing = dict.fromkeys(map(float, PERCENTILES), float("nan"))
        return Distribution(responses, 0, float("nan"), float("nan"), nothing, np.zeros(len(EDGES), np.int64))
    values = np.percentile(np.concatenate(parts), PERCENTILES, overwrite_input=True)
    return Distribution(
        responses=responses,
        tokens=tokens,
        mean=sum(float(part.sum(dtype=np.float64)) for part in parts) / tokens,
        low=sum(int((part < DECIDED).sum()) for part in parts) / tokens,
        percentiles={float(p): float(value) for p, value in zip(PERCENTILES, values, strict=True)},
        counts=np.sum([log_counts(part) for part in parts], axis=0),
    )


def log_counts(entropy_t: Array) -> Array:
    """`[len(EDGES)]` int64: how many entropies are in each bin of `Distribution.counts`."""
    return np.bincount(log_bins(entropy_t), minlength=len(EDGES))
