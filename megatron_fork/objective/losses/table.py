"""What `objective.loss` may be: the losses by name, and what each needs of its tokens.

A new loss is one file with a function and one entry here. The user's own is given as `objective.loss: module:name`, where the
name is such a function, or a `Loss` with its needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

from megatron_fork.errors import ConfigError
from megatron_fork.recipe import check_part, entry_named, is_custom, part

if TYPE_CHECKING:  # settings are checked without torch
    from megatron_fork.objective.losses.surrogate import Surrogate
    from megatron_fork.objective.selected_tokens import SelectedTokens

Column = Literal["sequence", "forking", "covered"]
"""Columns of `policy_loss` that a loss may need: the response of each token, the high-entropy class, `covariance_tokens`."""

Trains = Literal["selected", "candidates"]
Covers = Literal["top", "random"]


@dataclass(frozen=True)
class Loss:
    """A surrogate and what it needs."""

    surrogate: str | Callable[[SelectedTokens], Surrogate]
    """A function, or `module:function`, which is imported when it is first called."""
    columns: tuple[Column, ...] = ()
    """Optional columns that it needs."""
    whole_responses: bool = False
    """Whether one call must hold all selected tokens of each of its responses: micro-batches do not cut them."""
    trains: Trains = "selected"
    """candidates: all of them carry gradient, and the selected ones are its column `forking`."""
    covers: Covers = "top"
    """Which tokens of high covariance are in `covered`: those with the highest, or a random choice of the high ones."""
    unbounded_below: bool = False
    """Whether `clip_low` may be 1 or more, which means no lower bound."""

    def __call__(self, tokens: SelectedTokens) -> Surrogate:
        """The surrogate of each selected token."""
        return part(self.surrogate)(tokens)


def _of_file(name: str, **needs: Any) -> Loss:
    return Loss(f"megatron_fork.objective.losses.{name}:{name}", **needs)


LOSSES: dict[str, Loss] = {
    "ppo": _of_file("ppo"),
    "gspo": _of_file("gspo", columns=("sequence",), whole_responses=True),
    "cispo": _of_file("cispo", unbounded_below=True),
    "clip_cov": _of_file("clip_cov", columns=("covered",), covers="random"),
    "kl_cov": _of_file("kl_cov", columns=("covered",)),
    "archer": _of_file("archer", columns=("forking",), trains="candidates"),
}


@cache
def loss_named(name: str) -> Loss:
    """The loss of this name; raises `ConfigError` if there is none."""
    loss = entry_named("objective.loss", name, LOSSES, "loss", made=_made)
    if not is_custom(name):
        return loss
    check_part("objective.loss", name, "surrogate", loss.surrogate)
    if isinstance(loss.columns, str) or not set(loss.columns) <= set(get_args(Column)):
        given = loss.columns if isinstance(loss.columns, str) else ", ".join(map(str, loss.columns))
        raise ConfigError(
            f"objective.loss={name} is a Loss with columns={given}",
            hint=f"there are {', '.join(get_args(Column))}, in a tuple such as ('sequence',)",
        )
    for what, given, known in (("trains", loss.trains, get_args(Trains)), ("covers", loss.covers, get_args(Covers))):
        if given not in known:
            raise ConfigError(
                f"objective.loss={name} is a Loss with {what}={given}", hint=f"there are {', '.join(known)}"
            )
    return loss


def _made(found: object) -> Loss | None:
    return found if isinstance(found, Loss) else Loss(found) if callable(found) else None
