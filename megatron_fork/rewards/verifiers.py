"""The verifiers by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from megatron_fork.rewards import arithmetic, code, mathematics, procedural, published, reach
from megatron_fork.rewards.custom import is_custom, load_custom
from megatron_fork.rewards.rules import rules_of
from megatron_fork.rewards.score import RewardError, Score


def score(response: str, answer: str, *, kind: str = "math") -> Score:
    """Score one response in the calling process, without a time limit: `RewardPool` has one.

    Raises RewardError where `kind` is unknown or its verifier is not installed, and nothing on any response.
    """
    verifier = find_verifier(kind)
    try:
        return verifier(response, answer)
    except RewardError:
        raise
    except Exception as error:
        # Third-party parsers fail in any way there is; whatever makes them fail is not a right answer.
        return Score(0.0, f"verifier raised {type(error).__name__}")


def find_verifier(kind: str) -> Callable[[str, str], Score]:
    """The verifier of this name, of `math` by other rules, or of this `module:function`; raises RewardError."""
    if is_custom(kind):
        return load_custom(kind)
    rules = rules_of(kind)
    if rules is not None:
        return partial(mathematics.verify, rules=rules)
    if kind not in VERIFIERS:
        raise RewardError(f"unknown kind of verifier {kind!r}", hint=KNOWN_KINDS)
    return VERIFIERS[kind]


def is_kind(kind: str) -> bool:
    """Whether `kind` could name a verifier; a custom one is not loaded to find out."""
    return kind in VERIFIERS or is_custom(kind)


VERIFIERS: dict[str, Callable[[str, str], Score]] = {
    "arithmetic": arithmetic.verify,
    "code": code.verify,
    "math": mathematics.verify,
    "math_verify": published.verify,
    "reach": reach.verify,
    "reasoning_gym": procedural.verify,
}
# Kinds whose workers start programs of their own.
RUNS_PROGRAMS: frozenset[str] = frozenset({"code"})
KNOWN_KINDS = f"known kinds: {', '.join(sorted(VERIFIERS))}, or module:function"
