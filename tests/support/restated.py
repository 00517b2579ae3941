"""Every named rule once more, token by token in float64 and rationals, to compare `select_tokens` with."""

import math
from fractions import Fraction

import numpy
from torch import Tensor

from megatron_fork.selection import SelectionConfig

SPECIAL = [0.0, -0.0, 1e-45, 1e-38, 2.0**-126, 0.25, 0.25, 1.0, 1.0 + 2.0**-23, 3.4028235e38, math.inf]
"""Entropies that break what is written for well-behaved ones: ties, both zeros, denormals, neighbours, infinity."""


def restated(
    entropy: Tensor, mask: Tensor, config: SelectionConfig, *, segments: Tensor | None = None, ids: Tensor | None = None
) -> tuple[list[bool], float]:
    """(flags in flat order, threshold) of `tokens` top, bottom or all."""
    values = entropy.double().flatten().tolist()
    candidates = mask.flatten().tolist()
    order = range(len(values)) if ids is None else ids.flatten().tolist()
    segment = [0] * len(values) if config.scope == "minibatch" or segments is None else segments.flatten().tolist()
    if config.scope == "sequence" and segments is None:
        segment = [place // max(1, entropy.shape[-1]) for place in range(len(values))]
    groups: dict[int, list[int]] = {}
    for place in [place for place in range(len(values)) if candidates[place]]:
        groups.setdefault(segment[place], []).append(place)
    chosen, cuts = set[int](), []
    sign = -1.0 if config.tokens == "bottom" else 1.0
    for places in groups.values():
        if config.tokens == "all":
            chosen.update(places)
            continue
        ranking = sorted(places, key=lambda place: (-sign * values[place], order[place]))
        cut = cut_of([sign * values[place] for place in ranking], config)
        k = share(len(places), config.ratio)
        chosen.update(ranking[:k] if config.rule == "exact_k" else [p for p in places if sign * values[p] >= cut])
        cuts.append((sign * cut, len(places)))
    weight = sum(count for _, count in cuts)
    mean = sum(cut * count for cut, count in cuts) / weight if cuts else math.nan
    return [place in chosen for place in range(len(values))], mean


def share(count: int, ratio: float) -> int:
    return max(1, math.ceil(Fraction(str(ratio)) * count))


def cut_of(falling: list[float], config: SelectionConfig) -> float:
    """The score at the cut, of scores in falling order."""
    if config.rule != "quantile":
        return falling[share(len(falling), config.ratio) - 1]
    rising = falling[::-1]
    place = (1.0 - config.ratio) * (len(rising) - 1)
    low, high = rising[math.floor(place)], rising[math.ceil(place)]
    if math.isinf(high - low) or low == high:
        return low if low == high or low == -math.inf or place == math.floor(place) else high
    return float(numpy.float32(low + (high - low) * (place - math.floor(place))))
