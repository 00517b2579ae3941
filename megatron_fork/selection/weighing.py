"""Applies `selection.weights` to the chosen tokens: which of them stay, with which weight, and what denominators count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.errors import SelectionError
from megatron_fork.recipe import part, told_by_name
from megatron_fork.selection.scores import TokenColumns
from megatron_fork.selection.weights import weighting_named
from megatron_fork.selection.weights.chosen_tokens import ChosenTokens, Weighed


@dataclass(frozen=True)
class WeighedTokens:
    """`[tokens]` each: the tokens with a weight other than 0, their weights, and the tokens that they stand for."""

    mask: Tensor
    weight: Tensor
    counted: Tensor | None
    """None where no token was left out by chance: then `mask` is what is counted."""
    measures: dict[str, float]


def weigh(
    tokens: TokenColumns, chosen: Tensor, highest: Callable[[float], Tensor], tie_tolerance: float
) -> WeighedTokens:
    """Apply the weightings of `tokens.config` in their order, those that sample last; collective over `tokens.group`."""
    names = sorted(tokens.config.weights, key=lambda name: weighting_named(name).samples)
    counted = mask = chosen
    weight = torch.ones(chosen.shape, dtype=torch.float32, device=chosen.device)
    measures: dict[str, float] = {}
    for name in names:
        weighting = weighting_named(name)
        # A weighting sees also what another has sampled away: the tokens left stand for those.
        given = ChosenTokens(tokens, counted, highest, tie_tolerance)
        with told_by_name("selection.weights", name):
            found: Weighed = part(weighting.weigh)(given)
        values = _checked(name, found, given)
        stays = values > 0
        label = name.rpartition(":")[2]
        label = name.replace(":", ".") if f"{label}_kept" in measures else label
        measures |= {f"{label}_kept": given.shares(kept=stays)["kept"], **_numbers(name, found)}
        weight, mask = weight * values, mask & stays
        counted = counted if weighting.samples else counted & stays
    sampled = any(weighting_named(name).samples for name in names)
    return WeighedTokens(mask, weight.where(mask, 0.0), counted if sampled else None, measures)


def _numbers(name: str, found: Weighed) -> dict[str, float]:
    """What a weighting says of itself, to be logged; raises `SelectionError` if these are no numbers."""
    bad = [
        each for each, value in found.measures.items() if isinstance(value, bool) or not isinstance(value, int | float)
    ]
    if bad:
        raise SelectionError(
            f"selection.weights: {name} measures {bad[0]}, which is no number",
            hint="return Weighed(weight, {name: float}), the same on every rank",
        )
    return {each: float(value) for each, value in found.measures.items()}


def _checked(name: str, found: object, given: ChosenTokens) -> Tensor:
    """`[tokens]` float32: the weights, 0 at tokens that are not chosen; raises `SelectionError` on every rank alike."""
    weight = found.weight if isinstance(found, Weighed) else None
    fits = isinstance(weight, Tensor) and weight.shape == given.chosen.shape and weight.is_floating_point()
    values = weight.detach().to(torch.float32).where(given.chosen, 0.0) if fits and weight is not None else None
    is_bad = values is None or not bool((values.isfinite() & (values >= 0.0)).all())
    if collectives.all_reduce_max(torch.tensor(int(is_bad), device=given.chosen.device), given.columns.group):
        raise SelectionError(
            f"selection.weights: {name} does not give every chosen token a finite weight of 0 or more",
            hint="return Weighed(weight), a float tensor [tokens]",
        )
    assert values is not None, "a rank whose weights do not fit has told all"
    return values
