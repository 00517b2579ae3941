"""The answers that responses state, for counting which is the most frequent: what each kind of verifier would judge."""

from __future__ import annotations

import re
from fractions import Fraction

from megatron_fork.rewards.extraction import stated_answer
from megatron_fork.rewards.grammar import plain_number
from megatron_fork.rewards.mathematics import MAX_ANSWER_CHARACTERS
from megatron_fork.rewards.procedural import TAGGED
from megatron_fork.rewards.rules import MATHEMATICS, rules_of

# Digits alone: reading them costs nothing, whatever a model wrote.
_DIGITS = re.compile(r"[-+0-9.,$\s]{1,40}")


def states_answers(kind: str) -> bool:
    """Whether responses state an answer to this kind of verifier; others judge what a program or a plan does."""
    return compares_answers(kind) or kind in ("arithmetic", "reasoning_gym")


def compares_answers(kind: str) -> bool:
    """Whether the verifier takes any answer as the reference, so that it can say which two are equal."""
    return rules_of(kind) is not None or kind in (MATHEMATICS, "math_verify")


def answer_in(response: str, kind: str) -> str | None:
    """The answer that a response states to a verifier of this kind, which `states_answers`; None if it states none."""
    tagged = TAGGED.findall(response) if kind == "reasoning_gym" else []
    stated = tagged[-1] if tagged else stated_answer(response)
    stated = None if stated is None else stated.strip()
    return stated if stated and len(stated) <= MAX_ANSWER_CHARACTERS else None


def number_in(answer: str) -> Fraction | None:
    """The value of an answer that is digits alone; None if it is anything else."""
    return plain_number(answer) if _DIGITS.fullmatch(answer) else None
