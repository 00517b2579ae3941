"""The share of groups that had signal in the steps so far: by it the engine is asked for as many prompts as a step will need.

Which groups a step trains on does not depend on it, but for last bits of logits, which depend on a batch's other rows. Prompts
are judged in the order of their draws, and those that turn out not to be needed are forgotten, to be drawn again by the next
step with its own weights: too many cost time, too few another call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# What a step counts for after each later one: the share changes as the policy learns.
_REMEMBERED = 0.5


@dataclass(frozen=True)
class SignalShare:
    """Groups judged in the steps so far and those of them that had signal, both weighted: the last step counts most."""

    judged: float = 0.0
    kept: float = 0.0

    def after_step(self, judged: int, kept: int) -> SignalShare:
        return SignalShare(_REMEMBERED * self.judged + judged, _REMEMBERED * self.kept + kept)

    def expected(self, judged: int = 0, kept: int = 0) -> float:
        """Share expected of the next groups of a step, `kept` of whose `judged` groups had signal; 1 before any is known."""
        return (self.kept + kept + 1.0) / (self.judged + judged + 1.0)


NOTHING_SEEN = SignalShare()


def draws_to_come(missing: int, share: float, rounds: int) -> int:
    """How many prompts a step is expected to draw still; at least those of the next round.

    Each of `missing` places takes a new prompt in up to `rounds` rounds, until one has signal: `share` of the groups have it.
    """
    a_place = (1.0 - (1.0 - share) ** rounds) / share  # expected rounds for one place
    return min(max(missing, math.ceil(missing * a_place)), missing * rounds)
