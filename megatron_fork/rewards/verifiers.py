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
    """Score one response in the calling process, without a time limit; `RewardPool` has one.

    If the reference has several answers, the best score counts. Raises RewardError if `kind` is unknown or its verifier is not
    installed, and never because of a response.
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
            # Third-party parsers fail in many ways; a response that makes them fail is not right.
            scores.append(failed(error))
        if scores[-1].value >= 1.0:
            break
    # If none is right, a failure says more than the comparison with another answer.
    return max(scores, key=lambda score: (score.value, score.failure is not None))


def find_verifier(kind: str) -> Callable[[str, str], Score] | CustomVerifier:
    """The verifier of this name, `math` with other rules, or a `module:function`; raises RewardError."""
    if is_custom(kind):
        return load_custom(kind)
    rules = rules_of(kind)
    if rules is not None:
        return partial(mathematics.verify, rules=rules)
    if kind not in VERIFIERS:
        raise RewardError(f"unknown kind of verifier {kind!r}", hint=KNOWN_KINDS)
    return VERIFIERS[kind]


def takes_row(kind: str) -> bool:
    """Whether a verifier takes a row's data_source or extra_info; raises RewardError if there is no such verifier."""
    verifier = find_verifier(kind)
    return isinstance(verifier, CustomVerifier) and verifier.takes_row


def is_kind(kind: str) -> bool:
    """Whether `kind` could name a verifier; a custom one is not loaded to find out."""
    return kind in VERIFIERS or is_custom(kind)


def verify_with_math_verify(response: str, answer: str) -> Score:
    """Unchanged math-verify, so that figures can be compared with published ones; raises RewardError if it is not installed.

    It uses its own extraction, parser and comparison, with the reference first and between dollar signs as in its
    documentation. It is wrong on many answers that `math` judges right, and may compute forever: a `RewardPool` then kills the
    worker. Its own time-outs are off, since they need signals and the main thread.
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
