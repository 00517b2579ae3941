"""Which tokens carry gradient: every named choice, and the presets that set them all (arXiv 2506.01939 and its peers)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Gt, Lt

from megatron_fork.errors import ConfigError
from megatron_fork.recipe import (
    EntryOf,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    Settings,
    check_name,
)
from megatron_fork.selection.choices import TOKENS
from megatron_fork.selection.weights.table import WEIGHTINGS

Scope = Literal["minibatch", "microbatch_global", "microbatch", "sequence"]
Rule = Literal["threshold", "exact_k", "quantile"]
EntropyPolicy = Literal["current", "old"]
Preset = Literal["paper", "authors_code", "trl"]


@dataclass
class Nat(Settings, room="selection.nat"):
    """How `nat` draws the prefix of each response that an update reads (arXiv 2603.06619, random prefix cutting)."""

    shortest: PositiveFraction = 0.1
    """The shortest prefix, as a fraction of the response and at least one token; all lengths from there on are equally
    likely. The last tokens' weights reach (1 - shortest) times the response's length; 1: nothing is cut."""


@dataclass
class Quadrants(Settings, room="selection.quadrants"):
    """The weights that `quadrants` gives by polarity and entropy (arXiv 2604.11056); 0 leaves a quadrant out.

    High is the share `ratio` of the candidates, as `tokens=top` would choose them, positive an advantage above 0.
    """

    positive_high: NonNegativeFloat = 1.0
    """Weight of the tokens of good responses where the entropy is high."""
    negative_high: NonNegativeFloat = 1.0
    """Weight of the tokens of other responses where the entropy is high."""
    positive_low: NonNegativeFloat = 0.0
    """Weight of the tokens of good responses where the entropy is low."""
    negative_low: NonNegativeFloat = 0.0
    """Weight of the tokens of other responses where the entropy is low."""

    def check(self) -> None:
        if not any(vars(self).values()):
            raise ConfigError(
                "selection.quadrants has a weight of 0 for every token", hint="give one quadrant a weight of 1"
            )


@dataclass
class SoftEntropy(Settings, room="selection.soft_entropy"):
    """How `soft_entropy` weighs by entropy: sigmoid(s z) over its mean, z the entropy in standard deviations from the mean.

    In the manner of arXiv 2605.07660, which weighs by attention entropy; the form is this project's.
    """

    start: float = -1.0
    """The slope s at the start: below 0 low entropies weigh more."""
    end: float = 1.0
    """The slope from update `updates` on; above 0 high entropies weigh more."""
    updates: NonNegativeInt = 100
    """Updates over which the slope goes from start to end; 0: it is `end` from the first on."""


@dataclass
class Stapo(Settings, room="selection.stapo"):
    """What `stapo` leaves out: tokens with A > 0 that were unlikely where the policy was sure (arXiv 2602.15620)."""

    probability: Annotated[float, Gt(0), Lt(1)] = 0.002
    """Unlikely is a token whose probability is below this."""
    entropy_quantile: PositiveFraction = 0.8
    """The policy is sure where the entropy is below this quantile of the candidates': 0.8 is all but the top fifth, 1 all."""


@dataclass
class SecondMoment(Settings, room="selection.m2po"):
    """What `m2po` leaves out: the tokens with the largest log-ratios, until the rest have a small mean square.

    arXiv 2510.01161, which takes this in place of the clip: set objective.clip_low=0.99 and clip_high far above 1.
    """

    moment: PositiveFloat = 0.04
    """The largest mean square of log pi - log pi_before, in nats squared, over the tokens that stay."""
    before: Literal["old", "rollout"] = "old"
    """Whose log-probs the policy is compared with: those before the step's updates (old), or the engine's (rollout)."""
    over: Literal["all", "harmful"] = "all"
    """What counts in the mean and may go: all tokens, or those with A > 0 and a ratio above 1, or A < 0 and one below
    (harmful), the ones that a clip acts on; the authors' code looks at these."""


@dataclass
class SurprisalBand(Settings, room="selection.surprisal_band"):
    """What `surprisal_band` keeps: tokens whose surprisal, as a multiple of the entropy, lies within (arXiv 2606.31575).

    Over the tokens that the policy may draw at a position the multiple's mean is 1. The bounds are this project's.
    """

    low: NonNegativeFloat = 0.5
    """The lowest -logp / H that is kept; 0 keeps what is certain too."""
    high: PositiveFloat = 2.0
    """The highest -logp / H that is kept."""

    def check(self) -> None:
        if not self.low < self.high:
            raise ConfigError(
                f"selection.surprisal_band.low={self.low} is not below high={self.high}", hint="try 0.5 and 2"
            )


@dataclass
class SelectionConfig(Settings, room="selection"):
    """The rule of selection; a preset fills in fields that the recipe does not set.

    Every combination of the choices is valid, so that one word turns any recipe into its control arm: `random` marks
    exactly k tokens under every rule, and `all` ignores ratio, rule and scope. Weightings come after the choice.
    """

    preset: Preset = "paper"
    """Fills in the fields that are None, as in the `paper`, the `authors_code` or `trl` (docs/semantics.md)."""
    tokens: Annotated[str, EntryOf(tuple(TOKENS))] = "top"
    """top: highest entropies. bottom: lowest. random: the control arm. all: no selection. module:name: highest scores of a
    function of your own (docs/extending.md)."""
    ratio: PositiveFraction = 0.2
    """Fraction of the response tokens that carries gradient: 0.2 trains the top fifth, 1.0 all tokens."""
    scope: Scope | None = None
    """What the fraction is taken of: the whole mini-batch over all ranks, one micro-batch over all data-parallel ranks,
    one micro-batch of one rank, or one sequence. By default, as for the next two fields, the preset's choice."""
    rule: Rule | None = None
    """threshold: at or above the k-th largest, ties kept. exact_k: ties broken by token order. quantile: interpolated."""
    entropy_policy: EntropyPolicy | None = None
    """Whose entropy: the policy being trained, recomputed before every mini-batch, or the policy before the step."""
    seed: int = 0
    """Seed of the random choice; combined with the step."""
    weights: list[str] = field(default_factory=list)
    """What then weighs the chosen tokens, or leaves some out, one after another (docs/semantics.md).
    nat: trains random prefixes, with weights that keep the gradient unbiased; an update reads no more (arXiv 2603.06619).
    quadrants: one weight for good or bad responses at high or low entropy (arXiv 2604.11056).
    soft_entropy: more weight for low entropies at first, for high ones later (after arXiv 2605.07660).
    stapo: leaves out unlikely tokens of good responses where the policy was sure (arXiv 2602.15620).
    m2po: leaves out the largest log-ratios until the rest have a small second moment (arXiv 2510.01161).
    surprisal_band: keeps tokens whose surprisal is near the entropy (arXiv 2606.31575).
    module:name: a function of your own (docs/extending.md)."""
    nat: Nat = field(default_factory=Nat)
    quadrants: Quadrants = field(default_factory=Quadrants)
    soft_entropy: SoftEntropy = field(default_factory=SoftEntropy)
    stapo: Stapo = field(default_factory=Stapo)
    m2po: SecondMoment = field(default_factory=SecondMoment)
    surprisal_band: SurprisalBand = field(default_factory=SurprisalBand)

    def check(self) -> None:
        for place, name in enumerate(self.weights):
            check_name("selection.weights", name, WEIGHTINGS)
            if name in self.weights[:place]:
                raise ConfigError(f"selection.weights has {name} twice", hint="name each once")
        for name, value in PRESETS[self.preset]["selection"].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        compared = [name for name in self.weights if name in WEIGHTINGS and WEIGHTINGS[name].compares_with_old]
        if compared and self.m2po.before == self.entropy_policy:
            raise ConfigError(
                f"selection.entropy_policy=old with selection.weights=[{compared[0]}] would compare the old policy with itself",
                hint="set selection.entropy_policy=current, or selection.m2po.before=rollout",
            )


# Names are relative to the whole recipe, since the denominator belongs to the objective.
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
