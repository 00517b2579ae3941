"""math-verify as it comes, so that figures can be compared with published ones.

Its own extraction, parser and comparison, the reference first and between dollar signs as its documentation has it. It is wrong
on much that `math` is right about, and may compute for ever: in a `RewardPool` its worker is killed. Its own time-outs are
off, as they need signals and the main thread.
"""

from __future__ import annotations

from megatron_fork.rewards.score import RewardError, Score, excerpt


def verify(response: str, answer: str) -> Score:
    """Reward 1 where math-verify finds the response equal to `answer`; raises RewardError where it is not installed."""
    try:
        import math_verify  # type: ignore[import-untyped]
    except ImportError as error:
        hint = "pip install 'math-verify[antlr4_13_2]'"
        raise RewardError("kind 'math_verify' needs math-verify", hint=hint) from error
    expected = math_verify.parse(f"${answer}$", parsing_timeout=None)
    found = math_verify.parse(response, parsing_timeout=None)
    right = bool(math_verify.verify(expected, found, timeout_seconds=None))
    stated = str(found[-1]) if found else "nothing"
    return Score(float(right), f"{excerpt(stated)} is what math-verify found and compared")
