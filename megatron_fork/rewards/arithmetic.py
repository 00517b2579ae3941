"""Arithmetic chains: `12 + 7 - 15 + 3`, computed from left to right. The reference is the chain; its value is computed here."""

from __future__ import annotations

import re

from megatron_fork.rewards.extraction import stated_answer
from megatron_fork.rewards.grammar import plain_number
from megatron_fork.rewards.mathematics import MAX_ANSWER_CHARACTERS
from megatron_fork.rewards.score import Score, excerpt

CHAIN = re.compile(r"[0-9]{1,9}(?: [+*-] [0-9]{1,9}){0,99}")


def verify(response: str, answer: str) -> Score:
    r"""Reward 1 if the last `\boxed{...}` of the response, or else its last `Answer: ...` line, is the value of the chain."""
    if not CHAIN.fullmatch(answer):
        return Score(0.0, f"the reference answer {excerpt(answer)} is not a chain of integers with + - *", "error")
    stated = stated_answer(response)
    if stated is None:
        return Score(0.0, r"neither \boxed{...} nor an 'Answer:' line")
    claimed = plain_number(stated) if len(stated) <= MAX_ANSWER_CHARACTERS else None
    if claimed is None:
        return Score(0.0, f"{excerpt(stated)} is not a plain number")
    value = chain_value(answer)
    return Score(float(claimed == value), f"{excerpt(stated)} is compared with the chain's value {value}")


def chain_value(chain: str) -> int:
    """Value of a chain, computed from left to right without precedence."""
    first, *rest = chain.split()
    value = int(first)
    for operator, word in zip(rest[::2], rest[1::2], strict=True):
        operand = int(word)
        value = value + operand if operator == "+" else value - operand if operator == "-" else value * operand
    return value
