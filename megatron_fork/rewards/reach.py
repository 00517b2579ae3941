"""The task "reach": walk from one number to another with six operations.

A response reads `need +24 take op+10 get 17 . need +14 ... need +0 done`. The numbers in it are the model's working and
are never trusted: only the operations count, and they are executed here.
"""

from __future__ import annotations

import re

from megatron_fork.rewards.score import Score, excerpt

OPERATIONS = (1, 3, 10, -1, -3, -10)
MAX_OPERATIONS = 6

STEP_OF_WORD = {f"op{step:+d}": step for step in OPERATIONS}
ANSWER = re.compile(r"\s*([+-]?[0-9]{1,18})\s+([+-]?[0-9]{1,18})\s*")


def verify(response: str, answer: str) -> Score:
    """Reward 1 if the response ends in `done` and its operations lead from start to target in `MAX_OPERATIONS`.

    `answer` is "<start> <target>", two integers.
    """
    numbers = ANSWER.fullmatch(answer)
    if numbers is None:
        return Score(0.0, f"the reference answer {excerpt(answer)} is not '<start> <target>'", "error")
    position, target = int(numbers[1]), int(numbers[2])

    words = response.split()
    if not words or words[-1] != "done":
        return Score(0.0, "the last word is not done")
    operations = [word for word in words if word.startswith("op")]
    if len(operations) > MAX_OPERATIONS:
        return Score(0.0, f"{len(operations)} operations, more than {MAX_OPERATIONS}")
    for word in operations:
        if word not in STEP_OF_WORD:
            return Score(0.0, f"unknown operation {excerpt(word)}")
        position += STEP_OF_WORD[word]
    if position != target:
        return Score(0.0, f"the operations lead to {position}, not {target}")
    return Score(1.0, f"the operations lead to {target}")
