"""How rewards become a loss: every named choice of the objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from megatron_fork.errors import ConfigError
from megatron_fork.extension import check_name
from megatron_fork.objective.losses import LOSSES

Advantage = Literal["grpo", "dr_grpo", "rloo", "reinforce_pp", "gae"]
Average = Literal["token", "sequence", "constant"]
Denominator = Literal["selected", "all"]
KlEstimator = Literal["k1", "k2", "k3"]
Correction = Literal["none", "tis", "icepop", "sequence"]

_CHOICES = {
    "advantage": Advantage,
    "average": Average,
    "denominator": Denominator,
    "kl_estimator": KlEstimator,
    "correction": Correction,
}


@dataclass
class Overlong:
    """DAPO's treatment of responses near the limit (arXiv 2503.14476, Eq. 13), lengths in tokens."""

    max_response: int = 20480
    """The length from which on the whole punishment counts, in tokens."""
    cache: int = 4096
    """The punishment grows linearly over this many tokens before `max_response`."""
    factor: float = 1.0
    """Weight of the punishment; 0 switches it off."""
    filter: bool = False
    """Leave truncated responses out of the candidates and the loss."""

    def __post_init__(self) -> None:
        if not 0 < self.cache <= self.max_response:
            raise ConfigError(
                f"objective.overlong.cache={self.cache} is not between 1 and max_response={self.max_response}",
                hint="the paper uses max_response=20480 and cache=4096; factor=0 switches the punishment off",
            )


@dataclass
class EntropyShaping:
    """A + min(alpha H, |A| / kappa), the entropy held constant (arXiv 2506.14758)."""

    alpha: float = 0.0
    """Advantage per nat; 0 switches it off. The paper's GRPO runs use 0.4."""
    kappa: float = 2.0
    """The bonus is at most |A| / kappa, so that above 1 no advantage changes its sign."""

    def __post_init__(self) -> None:
        _refuse_negative("objective.entropy_shaping", self, "alpha")
        if not self.kappa > 1.0:
            raise ConfigError(
                f"objective.entropy_shaping.kappa={self.kappa} is not above 1",
                hint="at 1 or below the bonus could cancel a negative advantage; the paper uses 2",
            )


@dataclass
class Archer:
    """The looser constraints of high-entropy tokens under `loss=archer` (arXiv 2507.15778).

    The other tokens keep `objective.clip_low`, `clip_high` and `kl_coef`. Defaults are those of the authors' released
    script, which has 0.2, 0.2, 0.001 and k3 for the other tokens, and takes the top fifth of each response.
    """

    forking_clip_low: float = 0.5
    """How far the ratio of a high-entropy token may fall below 1; in [0, 1)."""
    forking_clip_high: float = 0.5
    """How far the ratio of a high-entropy token may rise above 1; 0 or more."""
    forking_kl: float = 0.0
    """Share of `kl_coef` that high-entropy tokens pay; 0: no KL on them."""

    def __post_init__(self) -> None:
        _refuse_negative("objective.archer", self, "forking_clip_low", "forking_clip_high", "forking_kl")
        if self.forking_clip_low >= 1.0:
            raise ConfigError(
                f"objective.archer.forking_clip_low={self.forking_clip_low} is not below 1",
                hint="the ratio is clipped to 1 - forking_clip_low; the authors use 0.5",
            )


@dataclass
class Gae:
    """Generalised advantage estimation with a critic (arXiv 1506.02438) and the critic's loss."""

    gamma: float = 1.0
    """Discount a token, in [0, 1]; 1: none."""
    lam: float = 1.0
    """1 is reward minus value. Below it, an outcome reaches back only about 1 / (1 - lam) tokens."""
    value_clip: float = 0.2
    """How far a value may move from the old one before its loss is clipped; 0 switches it off."""

    def __post_init__(self) -> None:
        for name in ("gamma", "lam"):
            if not 0.0 <= vars(self)[name] <= 1.0:
                raise ConfigError(f"objective.gae.{name}={vars(self)[name]} is outside [0, 1]", hint="try 1")
        _refuse_negative("objective.gae", self, "value_clip")


@dataclass
class ObjectiveConfig:
    """A policy gradient under a token mask: which surrogate, of which advantages, averaged how, with which penalties."""

    loss: str = "ppo"
    """ppo: min(r A, clip(r) A), with separate low and high clips and dual clip.
    gspo: the same with one ratio for a response, the geometric mean over its marked tokens (arXiv 2507.18071, which
    clips at clip_low=3e-4, clip_high=4e-4 and averages over responses: average=sequence).
    cispo: clip(r) A logp with the weight clip(r) held constant, so that every token keeps a gradient (arXiv 2506.13585).
    clip_cov: ppo without the tokens that `covariance_tokens` draws (arXiv 2505.22617).
    kl_cov: r A, not clipped but for dual_clip, with a penalty cov_kl_coef |logp - old logp| on those tokens (the same).
    archer: ppo with looser clip and KL on high-entropy tokens; all candidates are trained (arXiv 2507.15778).
    module:function: one of your own (docs/extending.md)."""
    advantage: Advantage = "grpo"
    """grpo: (R - mean) / std of the group. dr_grpo: R - mean. rloo: R - mean of the others.
    reinforce_pp: R - mean of the group, then whitened over the batch (REINFORCE++ baseline, arXiv 2501.03262).
    gae: of a critic, by `generalized_advantages`."""
    average: Average = "token"
    """token: the sum over tokens by their global count, which one is `denominator`. sequence: the mean over responses of
    the mean over a response's tokens (same `denominator`). constant: by responses x constant_length (arXiv 2503.20783)."""
    denominator: Denominator = "selected"
    """What the sum over selected tokens is divided by, over the whole mini-batch: selected tokens, or all candidates."""
    constant_length: int = 0
    """Tokens that a response counts for under average=constant; Dr.GRPO takes the longest response allowed."""
    clip_low: float = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]. A cap c that other programs name themselves, such as
    CISPO's min(r, c), is clip_high = c - 1; clip_low of 1 or more, for cispo alone, is no lower bound."""
    clip_high: float = 0.28
    """How far the ratio may rise above 1 before it is clipped; 0 or more."""
    dual_clip: float = 10.0
    """Bound of r A for negative advantages, as a multiple of A; 0 switches it off. cispo has no need of it."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus on the selected tokens, in reward per nat."""
    entropy_shaping: EntropyShaping = field(default_factory=EntropyShaping)
    kl_coef: float = 0.0
    """Weight of the KL penalty to the reference policy on the selected tokens, in reward per nat; 0 switches it off."""
    kl_estimator: KlEstimator = "k3"
    """Of KL(policy || reference) from its own tokens, with d = logp - reference logp. What counts is its gradient.
    k1: d, whose gradient is zero in expectation: it moves nothing, only adds noise. k2: d^2 / 2, whose gradient is that
    of KL(policy || reference). k3: e^-d - 1 + d, GRPO's, whose gradient is that of KL(reference || policy)."""
    archer: Archer = field(default_factory=Archer)
    cov_share: float = 0.0002
    """Share of the tokens that clip_cov draws, or that kl_cov takes from the top."""
    cov_low: float = 1.0
    """clip_cov draws among tokens with a covariance in [cov_low, cov_high]."""
    cov_high: float = 5.0
    """The upper bound of that covariance."""
    cov_kl_coef: float = 1.0
    """Penalty of kl_cov, in reward per nat. At the first update after a rollout |logp - old logp| has no gradient."""
    correction: Correction = "none"
    """For engine log-probs that differ from the trainer's. tis: weight min(old / rollout, tis_cap). icepop: weight
    old / rollout inside [icepop_low, icepop_high], 0 outside. sequence: weight 1, and 0 for whole responses whose
    geometric mean of old / rollout leaves [sequence_low, sequence_high]."""
    tis_cap: float = 2.0
    """Upper bound of the weight under `correction=tis`; above 0."""
    icepop_low: float = 0.5
    """Lower bound of old / rollout under `correction=icepop`; 0 or more."""
    icepop_high: float = 2.0
    """Upper bound of old / rollout under `correction=icepop`; above `icepop_low`."""
    sequence_low: float = 0.99
    """The bounds of `correction=sequence` are this project's: 1 % a token, on average over a response."""
    sequence_high: float = 1.01
    """Upper bound under `correction=sequence`; 1 or more."""
    gae: Gae = field(default_factory=Gae)
    overlong: Overlong = field(default_factory=Overlong)

    def __post_init__(self) -> None:
        for name, choice in _CHOICES.items():
            if vars(self)[name] not in get_args(choice):
                raise ConfigError(
                    f"objective.{name}={vars(self)[name]} is not a choice", hint=f"one of {', '.join(get_args(choice))}"
                )
        check_name("objective.loss", self.loss, LOSSES, "loss")
        _refuse_negative("objective", self, "clip_low", "clip_high", "dual_clip")
        _refuse_negative("objective", self, "entropy_coef", "kl_coef", "cov_kl_coef", "constant_length")
        self._check_clips()
        self._check_correction()
        if not 0.0 < self.cov_share <= 1.0:
            raise ConfigError(f"objective.cov_share={self.cov_share} is outside (0, 1]", hint="the authors use 0.0002")
        if not self.cov_low < self.cov_high:
            raise ConfigError(
                f"objective.cov_low={self.cov_low} is not below cov_high={self.cov_high}",
                hint="the authors use 1 and 5",
            )
        if self.average == "constant" and not self.constant_length:
            raise ConfigError(
                "objective.average=constant with constant_length=0 divides by nothing",
                hint="set objective.constant_length to the longest response allowed",
            )

    def _check_clips(self) -> None:
        may_be_unbounded = self.loss not in LOSSES or LOSSES[self.loss].unbounded_below
        if self.clip_low >= 1.0 and not may_be_unbounded:
            raise ConfigError(
                f"objective.clip_low={self.clip_low} is not below 1",
                hint="the ratio is clipped to 1 - clip_low; try 0.2 (loss=cispo alone takes 1 for no lower bound)",
            )
        if 0.0 < self.dual_clip <= 1.0:
            raise ConfigError(f"objective.dual_clip={self.dual_clip} is not above 1", hint="try 10, or 0 for none")

    def _check_correction(self) -> None:
        if not self.tis_cap > 0.0:
            raise ConfigError(f"objective.tis_cap={self.tis_cap} is not positive", hint="try 2")
        if not 0.0 <= self.icepop_low < self.icepop_high:
            raise ConfigError(
                f"objective.icepop_low={self.icepop_low} is not below icepop_high={self.icepop_high}",
                hint="try 0.5 and 2",
            )
        if not 0.0 <= self.sequence_low <= 1.0 <= self.sequence_high:
            raise ConfigError(
                f"objective.sequence_low={self.sequence_low}, sequence_high={self.sequence_high} do not enclose 1",
                hint="responses without any mismatch would be rejected; try 0.99 and 1.01",
            )


def _refuse_negative(path: str, config: Any, *names: str) -> None:
    for name in names:
        if not vars(config)[name] >= 0:  # NaN too
            raise ConfigError(f"{path}.{name}={vars(config)[name]} is negative", hint="give 0 or more")
