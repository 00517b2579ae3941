"""How rewards become a loss: every named choice of the objective."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from megatron_fork.errors import ConfigError

Advantage = Literal["grpo", "dr_grpo", "rloo"]
Denominator = Literal["selected", "all"]
Correction = Literal["none", "tis", "icepop"]


@dataclass
class Overlong:
    """DAPO's treatment of responses near the limit (arXiv 2503.14476, Eq. 13), lengths in tokens."""

    max_response: int = 20480
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
class Config:
    """The clipped policy gradient of DAPO under a token mask."""

    loss: Literal["ppo"] = "ppo"
    """ppo: min(r A, clip(r) A), with separate low and high clips and dual clip."""
    advantage: Advantage = "grpo"
    """grpo: (R - mean) / std of the group. dr_grpo: R - mean. rloo: R - mean of the others."""
    denominator: Denominator = "selected"
    """What the sum over selected tokens is divided by, over the whole mini-batch: selected tokens, or all candidates."""
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 10.0
    """Bound of r A for negative advantages, as a multiple of A; 0 switches it off."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus on the selected tokens, in reward per nat."""
    correction: Correction = "none"
    """For engine log-probs that differ from the trainer's. tis: weight min(old / rollout, tis_cap). icepop: weight
    old / rollout inside [icepop_low, icepop_high], 0 outside."""
    tis_cap: float = 2.0
    icepop_low: float = 0.5
    icepop_high: float = 2.0
    overlong: Overlong = field(default_factory=Overlong)

    def __post_init__(self) -> None:
        for name in ("clip_low", "clip_high", "dual_clip", "entropy_coef"):
            if vars(self)[name] < 0.0:
                raise ConfigError(f"objective.{name}={vars(self)[name]} is negative", hint="give 0 or more")
        if self.clip_low >= 1.0:
            raise ConfigError(
                f"objective.clip_low={self.clip_low} is not below 1",
                hint="the ratio is clipped to 1 - clip_low; try 0.2",
            )
        if 0.0 < self.dual_clip <= 1.0:
            raise ConfigError(f"objective.dual_clip={self.dual_clip} is not above 1", hint="try 10, or 0 for none")
        if self.tis_cap <= 0.0:
            raise ConfigError(f"objective.tis_cap={self.tis_cap} is not positive", hint="try 2")
        if not 0.0 <= self.icepop_low < self.icepop_high:
            raise ConfigError(
                f"objective.icepop_low={self.icepop_low} is not below icepop_high={self.icepop_high}",
                hint="try 0.5 and 2",
            )
