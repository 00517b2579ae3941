"""What `objective.loss` may be: the losses by name, and what each needs of its tokens.

A new loss is one file with a function and one entry here. One of the user's own stands outside: `objective.loss: module:name`,
where the name is such a function, or a `Loss` that says what it needs.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

from megatron_fork.errors import ConfigError

if TYPE_CHECKING:  # settings are checked without torch
    from megatron_fork.objective.losses.surrogate import Surrogate
    from megatron_fork.objective.selected_tokens import SelectedTokens

Column = Literal["sequence", "forking", "covered"]
"""Columns of `policy_loss` that a loss may ask for: the response of each token, the high-entropy class, `covariance_tokens`."""
_CUSTOM = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Loss:
    """A surrogate with what it needs."""

    surrogate: str | Callable[[SelectedTokens], Surrogate]
    """A function, or `module:function`, which is imported when it is first called."""
    columns: tuple[Column, ...] = ()
    """Optional columns that it cannot do without."""
    whole_responses: bool = False
    """One call must hold all selected tokens of each of its responses: micro-batches do not cut them."""
    trains: Literal["selected", "candidates"] = "selected"
    """candidates: all of them carry gradient, and the selected ones are its column `forking`."""
    covers: Literal["top", "random"] = "top"
    """Which tokens of high covariance are in `covered`: those with the highest, or some drawn among the high ones."""
    unbounded_below: bool = False
    """`clip_low` of 1 or more means something: no lower bound."""

    def __call__(self, tokens: SelectedTokens) -> Surrogate:
        """The surrogate of each selected token."""
        return _function(self.surrogate)(tokens)


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


def is_custom(name: str) -> bool:
    """Whether a name has the form `module:name` of a loss outside this package; it is not looked for."""
    return _CUSTOM.fullmatch(name) is not None


@cache
def loss_named(name: str) -> Loss:
    """The loss of this name; raises `ConfigError` where there is none."""
    if name in LOSSES:
        return LOSSES[name]
    if not is_custom(name):
        raise ConfigError(f"objective.loss={name} is no loss", hint=f"one of {', '.join(LOSSES)}, or module:function")
    module, _, attribute = name.partition(":")
    try:
        if "" not in sys.path:  # the current folder, as for verifiers
            sys.path.insert(0, "")
        found = vars(importlib.import_module(module))[attribute]
    except KeyError as error:
        raise ConfigError(f"objective.loss={name}: {module} has no {attribute}", hint="check its spelling") from error
    except Exception as error:  # whatever the user's module does when it is imported
        raise ConfigError(
            f"objective.loss={name}: {module} cannot be imported: {type(error).__name__} {error}",
            hint="put its folder on PYTHONPATH, or run where it lies",
        ) from error
    loss = found if isinstance(found, Loss) else Loss(found) if callable(found) else None
    if loss is None or not set(loss.columns) <= set(get_args(Column)):
        raise ConfigError(
            f"objective.loss={name} is no function, nor a Loss with columns among {', '.join(get_args(Column))}",
            hint="the project's docs/extending.md shows one",
        )
    return loss


@cache
def _function(named: str | Callable[[SelectedTokens], Surrogate]) -> Callable[[SelectedTokens], Surrogate]:
    if not isinstance(named, str):
        return named
    module, _, attribute = named.partition(":")
    function: Callable[[SelectedTokens], Surrogate] = vars(importlib.import_module(module))[attribute]
    return function
