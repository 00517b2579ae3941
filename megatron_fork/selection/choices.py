"""What `selection.tokens`, `selection.scope` and `selection.rule` may be: the choices by name, and what each means.

A new choice of tokens is a score and one entry here. The user's own is given as `selection.tokens: module:name`, where the
name is a function that scores tokens, or a `TokenChoice`. Nothing here needs torch, since settings are checked with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from megatron_fork.recipe import check_part, entry_named, is_custom

if TYPE_CHECKING:  # settings are checked without torch
    from torch import Tensor

    from megatron_fork.selection.scores import TokenColumns


@dataclass(frozen=True)
class TokenChoice:
    """The tokens with the highest scores, `selection.ratio` of them, counted over all ranks of the scope."""

    score: str | Callable[[TokenColumns], Tensor] | None
    """A function, or `module:function`, which is imported when it is first called; None: every candidate, without a score.

    It returns one number per token, floats or integers. Floats are compared as float32, and cut by `selection.rule`. Of
    integers exactly k tokens are taken, ties by the tokens' ids.
    """
    lowest: bool = False
    """Choose those with the lowest scores instead."""
    by_entropy: bool = False
    """The score is the entropy in nats: the cut is `Selection.threshold`, which reports show beside entropies."""


_SCORES = "megatron_fork.selection.scores"
TOKENS: dict[str, TokenChoice] = {
    "top": TokenChoice(f"{_SCORES}:entropy", by_entropy=True),
    "bottom": TokenChoice(f"{_SCORES}:entropy", lowest=True, by_entropy=True),
    "random": TokenChoice(f"{_SCORES}:pseudo_random"),
    "all": TokenChoice(None),
}


@cache
def token_choice(name: str) -> TokenChoice:
    """The choice of this name; raises `ConfigError` if there is none."""
    choice = entry_named("selection.tokens", name, TOKENS, "choice of tokens", made=_made)
    if is_custom(name):
        check_part("selection.tokens", name, "score", choice.score)
    return choice


def _made(found: object) -> TokenChoice | None:
    return found if isinstance(found, TokenChoice) else TokenChoice(found) if callable(found) else None


@dataclass(frozen=True)
class CutScope:
    """The tokens that share one cut."""

    segment: Literal["sequence", "micro_batch"] | None = None
    """Cut each of these separately; None: all tokens together."""
    over_ranks: bool = False
    """Together with the other ranks' tokens."""


SCOPES: dict[str, CutScope] = {
    "minibatch": CutScope(over_ranks=True),
    "microbatch_global": CutScope("micro_batch", over_ranks=True),
    "microbatch": CutScope("micro_batch"),
    "sequence": CutScope("sequence"),
}


@dataclass(frozen=True)
class CutRule:
    """Where scores are cut, and which tokens at the cut are taken."""

    interpolates: bool = False
    """Cut between the two scores around the quantile, like `torch.quantile`, instead of at the k-th largest."""
    breaks_ties: bool = False
    """Take exactly k tokens, of equal ones those with the lowest ids; otherwise all equal ones."""


RULES: dict[str, CutRule] = {
    "threshold": CutRule(),
    "exact_k": CutRule(breaks_ties=True),
    "quantile": CutRule(interpolates=True),
}
