"""The "reach" task: generated, checkable, and full of real forks among deterministic filler.

A prompt names a start and a target; a response walks there by operations and keeps track of the difference:

    from 7 to 31 :   need +24 take op+10 get 17 . need +14 take op+10 get 27 . ... need +0 done

The verifier executes the operations and trusts nothing else. The demonstrator, which the warm start imitates, takes the best
operation about a third of the time and any legal one otherwise: most tokens of a walk are forced, the operations are forks,
and a policy that has imitated it reaches the target a little less than half the time.
"""

from __future__ import annotations

import random
from collections import deque

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from megatron_fork.rewards import MAX_OPERATIONS, OPERATIONS

LARGEST = 39
_MARGIN = 3
_BEST_CHOICE = 0.35
_STOPS_AT_TARGET = 0.9
_EXCURSION = 90


def words() -> list[str]:
    """The whole vocabulary, in the order of its ids."""
    special = ["<pad>", "<eos>"]
    grammar = ["from", "to", ":", "need", "take", "get", ".", "done"]
    numbers = [str(number) for number in range(LARGEST + 1)]
    differences = [f"{difference:+d}" for difference in range(-LARGEST, LARGEST + 1)]
    return special + grammar + numbers + differences + [operation_word(operation) for operation in OPERATIONS]


def operation_word(operation: int) -> str:
    return f"op{operation:+d}"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; loads and saves like any Hugging Face tokenizer."""
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words())}))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def _fewest_operations() -> dict[int, int]:
    """The fewest operations for each difference."""
    fewest = {0: 0}
    queue = deque([0])
    while queue:
        here = queue.popleft()
        for operation in OPERATIONS:
            there = here + operation
            if abs(there) < _EXCURSION and there not in fewest:
                fewest[there] = fewest[here] + 1
                queue.append(there)
    return fewest


_FEWEST = _fewest_operations()


def all_tasks() -> list[tuple[str, str]]:
    """(question, answer) of every pair that can be reached with an operation to spare, in a fixed order."""
    numbers = range(_MARGIN, LARGEST - _MARGIN + 1)
    return [
        (f"from {start} to {target} :", f"{start} {target}")
        for start in numbers
        for target in numbers
        if start != target and _FEWEST[target - start] < MAX_OPERATIONS
    ]


def walk(start: int, target: int, generator: random.Random) -> str:
    """One walk of the demonstrator, which is not always right, as text without the end token."""
    value, steps = start, []
    for taken in range(MAX_OPERATIONS + 1):
        missing = target - value
        steps.append(f"need {missing:+d}")
        stops = missing == 0 and generator.random() < _STOPS_AT_TARGET
        if stops or taken == MAX_OPERATIONS:
            return " ".join([*steps, "done"])
        legal = [operation for operation in OPERATIONS if 0 <= value + operation <= LARGEST]
        best = min(legal, key=lambda operation: _FEWEST[missing - operation])
        operation = best if generator.random() < _BEST_CHOICE else generator.choice(legal)
        value += operation
        steps.append(f"take {operation_word(operation)} get {value} .")
    raise AssertionError("the walk ends at the last operation at the latest")


def demonstrate(answer: str, generator: random.Random) -> str:
    """A walk for the prompt with this answer."""
    start, target = (int(word) for word in answer.split())
    return walk(start, target, generator)
