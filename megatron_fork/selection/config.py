"""Which tokens carry gradient: every named choice, and the presets that set them all (arXiv 2506.01939 and its peers)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from megatron_fork.errors import ConfigError
from megatron_fork.extension import is_custom, shown, suggestion
from megatron_fork.selection.choices import RULES, SCOPES, TOKENS

Scope = Literal["minibatch", "microbatch_global", "microbatch", "sequence"]
Rule = Literal["threshold", "exact_k", "quantile"]
EntropyPolicy = Literal["current", "old"]
Preset = Literal["paper", "authors_code", "trl"]


@dataclass
class SelectionConfig:
    """The rule of selection; a preset fills in what the recipe leaves unsaid, and an explicit field wins over it.

    Every combination of the choices means something, so that one word turns any recipe into its control arm: `random`
    marks exactly k tokens whatever the rule, and `all` reads neither ratio nor rule nor scope.
    """

    preset: Preset = "paper"
    """What the fields of None are filled with: `paper`, the `authors_code`, or what `trl` does (docs/semantics.md)."""
    tokens: str = "top"
    """top: highest entropies. bottom: lowest. random: the control arm. all: no selection. module:name: highest scores of a
    function of your own (docs/extending.md)."""
    ratio: float = 0.2
    """Share of the response tokens that carries gradient, in (0, 1]."""
    scope: Scope | None = None
    """What the share is taken of: the whole mini-batch over all ranks, one micro-batch over all data-parallel ranks,
    one micro-batch of one rank, or one sequence. Like the two below, the preset's choice where none is made."""
    rule: Rule | None = None
    """threshold: at or above the k-th largest, ties kept. exact_k: ties broken by token order. quantile: interpolated."""
    entropy_policy: EntropyPolicy | None = None
    """Whose entropy: the policy being trained, recomputed before every mini-batch, or the one that began the step."""
    seed: int = 0
    """Of the random choice; combined with the step."""

    def __post_init__(self) -> None:
        self._check_choice("preset", get_args(Preset))
        for name, value in PRESETS[self.preset]["selection"].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if not is_custom(self.tokens):  # one of the user's own is imported by whoever is to run it
            self._check_choice("tokens", TOKENS)
        for name, choices in (("scope", SCOPES), ("rule", RULES), ("entropy_policy", get_args(EntropyPolicy))):
            self._check_choice(name, choices)
        if not isinstance(self.ratio, (int, float)) or not 0.0 < self.ratio <= 1.0:
            raise ConfigError(
                f"selection.ratio={self.ratio} is outside (0, 1]",
                hint="0.2 trains the top fifth; 1.0 trains all tokens",
            )
        if not isinstance(self.seed, int):
            raise ConfigError(f"selection.seed={self.seed} is not an integer", hint="any will do, such as 0")

    def _check_choice(self, name: str, choices: Iterable[str]) -> None:
        value = getattr(self, name)
        if value not in list(choices):
            raise ConfigError(
                f"selection.{name}={shown(value)} is not one of {', '.join(choices)}",
                hint=f"{suggestion(value, choices)}the project's docs/semantics.md says what each of them means",
            )


# Values below are relative to the whole recipe, since the denominator belongs to the objective.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "selection": {"scope": "minibatch", "rule": "threshold", "entropy_policy": "current"},
        "objective": {"denominator": "selected"},
    },
    "authors_code": {
        "selection": {"scope": "microbatch", "rule": "exact_k", "entropy_policy": "current"},
        "objective": {"denominator": "selected"},
    },
    "trl": {
        "selection": {"scope": "microbatch_global", "rule": "quantile", "entropy_policy": "current"},
        "objective": {"denominator": "all"},
    },
}
