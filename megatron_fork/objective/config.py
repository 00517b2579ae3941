"""How rewards become a loss: all settings of the objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Unit

from megatron_fork.errors import ConfigError
from megatron_fork.objective.losses import LOSSES
from megatron_fork.recipe import (
    EntryOf,
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    PositiveFloat,
    PositiveFraction,
    Settings,
    Tokens,
)

Advantage = Literal["grpo", "dr_grpo", "rloo", "reinforce_pp", "gae"]
Average = Literal["token", "sequence", "constant"]
Denominator = Literal["selected", "all"]
KlEstimator = Literal["k1", "k2", "k3"]
Correction = Literal["none", "tis", "icepop", "sequence"]


@dataclass
class Overlong(Settings, room="objective.overlong"):
    """DAPO's treatment of responses near the limit (arXiv 2503.14476, Eq. 13)."""

    max_response: Tokens = 20480
    """The length from which the full penalty applies."""
    cache: Tokens = 4096
    """The penalty grows linearly over this many tokens before `max_response`."""
    factor: NonNegativeFloat = 1.0
    """Weight of the penalty; 0 switches it off."""
    filter: bool = False
    """Leave truncated responses out of the candidates and the loss."""

    def check(self) -> None:
        if self.cache > self.max_response:
            raise ConfigError(
                f"objective.overlong.cache={self.cache} is not between 1 and max_response={self.max_response}",
                hint="the paper uses max_response=20480 and cache=4096; factor=0 switches the penalty off",
            )


@dataclass
class EntropyShaping(Settings, room="objective.entropy_shaping"):
    """A + min(alpha H, |A| / kappa), the entropy held constant (arXiv 2506.14758)."""

    alpha: NonNegativeFloat = 0.0
    """Advantage per nat; 0 switches it off. The paper's GRPO runs use 0.4."""
    kappa: Annotated[float, Gt(1)] = 2.0
    """The bonus is at most |A| / kappa, so with kappa above 1 no advantage changes its sign; the paper uses 2."""


@dataclass
class Archer(Settings, room="objective.archer"):
    """The looser constraints of high-entropy tokens under `loss=archer` (arXiv 2507.15778).

    The other tokens use `objective.clip_low`, `clip_high` and `kl_coef`. Defaults are those of the authors' released
    script, which has 0.2, 0.2, 0.001 and k3 for the other tokens, and takes the top fifth of each response.
    """

    forking_clip_low: FractionBelowOne = 0.5
    """How far the ratio of a high-entropy token may fall below 1."""
    forking_clip_high: NonNegativeFloat = 0.5
    """How far the ratio of a high-entropy token may rise above 1."""
    forking_kl: NonNegativeFloat = 0.0
    """Fraction of `kl_coef` that applies to high-entropy tokens; 0: no KL on them."""


@dataclass
class Gae(Settings, room="objective.gae"):
    """Generalised advantage estimation with a critic (arXiv 1506.02438) and the critic's loss."""

    gamma: Fraction = 1.0
    """Discount per token; 1: none."""
    lam: Fraction = 1.0
    """1: the advantage is reward minus value. Below 1, a reward reaches back only about 1 / (1 - lam) tokens."""
    value_clip: NonNegativeFloat = 0.2
    """How far a value may move from the old one before its loss is clipped; 0 switches it off."""


@dataclass
class ObjectiveConfig(Settings, room="objective"):
    """A policy gradient under a token mask: its surrogate, advantages, average and penalties."""

    loss: Annotated[str, EntryOf(tuple(LOSSES))] = "ppo"
    """ppo: min(r A, clip(r) A), with separate low and high clips and dual clip.
    gspo: the same with one ratio for a response, the geometric mean over its marked tokens (arXiv 2507.18071, which
    clips at clip_low=3e-4, clip_high=4e-4 and averages over responses: average=sequence).
    cispo: clip(r) A logp with the weight clip(r) held constant, so that every token keeps a gradient (arXiv 2506.13585).
    clip_cov: ppo without the tokens that `covariance_tokens` draws (arXiv 2505.22617).
    kl_cov: r A, not clipped but for dual_clip, with a penalty cov_kl_coef |logp - old logp| on those tokens (the same).
    archer: ppo with looser clip and KL on high-entropy tokens; all candidates are trained (arXiv 2507.15778).
    module:function: your own (docs/extending.md)."""
    advantage: Advantage = "grpo"
    """grpo: (R - mean) / std of the group. dr_grpo: R - mean. rloo: R - mean of the others.
    reinforce_pp: R - mean of the group, then whitened over the batch (REINFORCE++ baseline, arXiv 2501.03262).
    gae: from a critic's values, by `generalized_advantages`."""
    average: Average = "token"
    """token: the sum over tokens divided by the global count of `denominator`. sequence: the mean over responses of the
    mean over a response's tokens (same `denominator`). constant: divided by responses x constant_length (arXiv 2503.20783)."""
    denominator: Denominator = "selected"
    """What the sum over selected tokens is divided by, over the whole mini-batch: selected tokens, or all candidates."""
    constant_length: Annotated[int, Ge(0), Unit("tokens")] = 0
    """Tokens that a response counts for under average=constant; Dr.GRPO takes the longest response allowed."""
    clip_low: NonNegativeFloat = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]. A cap c that other programs name themselves, such as
    CISPO's min(r, c), is clip_high = c - 1; clip_low of 1 or more, for cispo alone, is no lower bound."""
    clip_high: NonNegativeFloat = 0.28
    """How far the ratio may rise above 1 before it is clipped."""
    dual_clip: NonNegativeFloat = 10.0
    """Bound of r A for negative advantages, as a multiple of A; 0 switches it off. cispo does not need it."""
    entropy_coef: NonNegativeFloat = 0.0
    """Weight of an entropy bonus on the selected tokens, in reward per nat."""
    entropy_shaping: EntropyShaping = field(default_factory=EntropyShaping)
    kl_coef: NonNegativeFloat = 0.0
    """Weight of the KL penalty to the reference policy on the selected tokens, in reward per nat; 0 switches it off."""
    kl_estimator: KlEstimator = "k3"
    """Estimator of KL(policy || reference) from the policy's tokens, with d = logp - reference logp; its gradient matters.
    k1: d, whose gradient is zero in expectation: it only adds noise. k2: d^2 / 2, whose gradient is that
    of KL(policy || reference). k3: e^-d - 1 + d, GRPO's, whose gradient is that of KL(reference || policy)."""
    archer: Archer = field(default_factory=Archer)
    cov_share: PositiveFraction = 0.0002
    """Fraction of the tokens that clip_cov draws, or that kl_cov takes from the top."""
    cov_low: float = 1.0
    """clip_cov draws among tokens with a covariance in [cov_low, cov_high]."""
    cov_high: float = 5.0
    """Upper bound of that covariance."""
    cov_kl_coef: NonNegativeFloat = 1.0
    """Penalty of kl_cov, in reward per nat. At the first update after a rollout |logp - old logp| has no gradient."""
    correction: Correction = "none"
    """For engine log-probs that differ from the trainer's. tis: weight min(old / rollout, tis_cap). icepop: weight
    old / rollout inside [icepop_low, icepop_high], 0 outside. sequence: weight 1, and 0 for whole responses whose
    geometric mean of old / rollout leaves [sequence_low, sequence_high]."""
    tis_cap: PositiveFloat = 2.0
    """Upper bound of the weight under `correction=tis`."""
    icepop_low: NonNegativeFloat = 0.5
    """Lower bound of old / rollout under `correction=icepop`."""
    icepop_high: PositiveFloat = 2.0
    """Upper bound of old / rollout under `correction=icepop`; above `icepop_low`."""
    sequence_low: Fraction = 0.99
    """Lower bound under `correction=sequence`. Both bounds are this project's: 1 % per token, averaged over a response."""
    sequence_high: Annotated[float, Ge(1)] = 1.01
    """Upper bound under `correction=sequence`."""
    gae: Gae = field(default_factory=Gae)
    overlong: Overlong = field(default_factory=Overlong)

    def check(self) -> None:
        self._check_clips()
        self._check_correction()
        if not self.cov_low < self.cov_high:
            raise ConfigError(
                f"objective.cov_low={self.cov_low} is not below cov_high={self.cov_high}",
                hint="the authors use 1 and 5",
            )
        if self.average == "constant" and not self.constant_length:
            raise ConfigError(
                "objective.average=constant with constant_length=0 would divide by 0",
                hint="set objective.constant_length to the longest response allowed",
            )

    def _check_clips(self) -> None:
        may_be_unbounded = self.loss not in LOSSES or LOSSES[self.loss].unbounded_below
        if self.clip_low >= 1.0 and not may_be_unbounded:
            raise ConfigError(
                f"objective.clip_low={self.clip_low} is not below 1",
                hint="the ratio is clipped to 1 - clip_low; try 0.2 (only with loss=cispo 1 means no lower bound)",
            )
        if 0.0 < self.dual_clip <= 1.0:
            raise ConfigError(f"objective.dual_clip={self.dual_clip} is not above 1", hint="try 10, or 0 for none")

    def _check_correction(self) -> None:
        if not self.icepop_low < self.icepop_high:
            raise ConfigError(
                f"objective.icepop_low={self.icepop_low} is not below icepop_high={self.icepop_high}",
                hint="try 0.5 and 2",
            )
