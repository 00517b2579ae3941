"""The verifiers by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from megatron_fork.rewards import arithmetic, code, mathematics, procedural, reach
from megatron_fork.rewards.custom import CustomVerifier, is_custom, load_custom
from megatron_fork.rewards.reference import read_reference
from megatron_fork.rewards.rules import rules_of
from megatron_fork.rewards.score import RewardError, Score, excerpt, failed


def score(response: str, answer: str, *, kind: str = "math") -> Score:
    """Score one response in the calling process, without a time limit: `RewardPool` has one.

    Where the reference has several answers, the best score by any of them counts. Raises RewardError where `kind` is unknown or
    its verifier is not installed, and nothing on any response.
    """
    verifier, reference = find_verifier(kind), read_reference(answer)
    scores = []
    for each in reference.answers:
        try:
            if isinstance(verifier, CustomVerifier):
                scores.append(verifier(response, each, reference))
            else:
                scores.append(verifier(response, each))
        except RewardError:
            raise
        except (Exception, SystemExit) as error:
            # Third-party parsers fail in any way there is; whatever makes them fail is not a right answer.
            scores.append(failed(error))
        if scores[-1].value >= 1.0:
            break
    # Of none that is right, a failure says more than an answer that is another's.
    return max(scores, key=lambda score: (score.value, score.failure is not None))


def find_verifier(kind: str) -> Callable[[str, str], Score] | CustomVerifier:
    """The verifier of this name, of `math` by other rules, or of this `module:function`; raises RewardError."""
    if is_custom(kind):
        return load_custom(kind)
    rules = rules_of(kind)
    if rules is not None:
        return partial(mathematics.verify, rules=rules)
    if kind not in VERIFIERS:
        raise RewardError(f"unknown kind of verifier {kind!r}", hint=KNOWN_KINDS)
    return VERIFIERS[kind]


def takes_row(kind: str) -> bool:
    """Whether a verifier asks for a row's data_source or extra_info; raises RewardError where there is no such verifier."""
    verifier = find_verifier(kind)
    return isinstance(verifier, CustomVerifier) and verifier.takes_row


def is_kind(kind: str) -> bool:
    """Whether `kind` could name a verifier; a custom one is not loaded to find out."""
    return kind in VERIFIERS or is_custom(kind)


def verify_with_math_verify(response: str, answer: str) -> Score:
    """math-verify as it comes, so that figures can be compared with published ones; raises RewardError where it is missing.

    Its own extraction, parser and comparison, the reference first and between dollar signs as its documentation has it. It is
    wrong on much that `math` is right about, and may compute for ever: in a `RewardPool` its worker is killed. Its own
    time-outs are off, as they need signals and the main thread.
    """
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


VERIFIERS: dict[str, Callable[[str, str], Score]] = {
    "arithmetic": arithmetic.verify,
    "code": code.verify,
    "math": mathematics.verify,
    "math_verify": verify_with_math_verify,
    "reach": reach.verify,
    "reasoning_gym": procedural.verify,
}
# Kinds whose workers start programs of their own.
RUNS_PROGRAMS: frozenset[str] = frozenset({"code"})
KNOWN_KINDS = f"known kinds: {', '.join(sorted(VERIFIERS))}, or module:function"
