"""The verifiers by name."""

from __future__ import annotations

from collections.abc import Callable

from megatron_fork.rewards import mathematics, reach
from megatron_fork.rewards.score import RewardError, Score


def score(response: str, answer: str, *, kind: str = "math") -> Score:
    """Score one response in the calling process, without a time limit: `RewardPool` has one.

    Raises RewardError where `kind` is unknown or its verifier is not installed, and nothing on any response.
    """
    if kind not in VERIFIERS:
        known = ", ".join(sorted(VERIFIERS))
        raise RewardError(f"unknown kind of verifier {kind!r}", hint=f"known kinds: {known}")
    try:
        return VERIFIERS[kind](response, answer)
    except RewardError:
        raise
    except Exception as error:
        # Third-party parsers fail in any way there is; whatever makes them fail is not a right answer.
        return Score(0.0, f"verifier raised {type(error).__name__}")


VERIFIERS: dict[str, Callable[[str, str], Score]] = {
    "math": mathematics.verify,
    "reach": reach.verify,
}
