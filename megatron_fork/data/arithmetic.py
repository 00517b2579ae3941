"""Arithmetic chains: `12 + 7 - 15 =` is answered by `12 + 7 = 19 ; 19 - 15 = 4 ; Answer: 4`.

The demonstrator makes a mistake in one of eight steps and goes on from there, so that a model that has imitated it is right on
about two thirds of chains with four terms. Every number is one token of the task's own tokenizer; other tokenizers work too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from megatron_fork.errors import ConfigError

LARGEST_TOTAL = 199
MISTAKES = (-10, -1, 1, 10)
MISTAKE_RATE = 1 / 8
PARAMETERS = {"terms": 4, "largest": 40}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word: signs, and every integer from -199 to 199."""
    words = ["<pad>", "<eos>", "+", "-", "=", ";", "Answer:"]
    words += [str(number) for number in range(-LARGEST_TOTAL, LARGEST_TOTAL + 1)]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def chains(size: int, seed: int, parameters: dict[str, int]) -> Iterator[str]:
    """`size` different chains whose running totals stay between 0 and 199; raises `ConfigError`."""
    unknown = parameters.keys() - PARAMETERS.keys()
    if unknown:
        raise ConfigError(
            f"data.generator.parameters has {', '.join(sorted(unknown))}",
            hint=f"arithmetic takes {', '.join(PARAMETERS)}",
        )
    terms, largest = ({**PARAMETERS, **parameters}[name] for name in PARAMETERS)
    if not (2 <= terms <= 50 and 2 <= largest <= LARGEST_TOTAL):
        raise ConfigError(
            f"data.generator.parameters has terms={terms}, largest={largest}",
            hint=f"set terms from 2 to 50, and largest from 2 to {LARGEST_TOTAL}",
        )
    generator = random.Random(f"{seed}/arithmetic")
    seen: set[str] = set()
    for _ in range(100 * size):
        chain = _chain(terms, largest, generator)
        if chain not in seen:
            seen.add(chain)
            yield chain
        if len(seen) == size:
            return
    raise ConfigError(
        f"data.generator.size={size}, but there are not many more than {len(seen)} such chains",
        hint="reduce data.generator.size, or raise data.generator.parameters.terms",
    )


def prompt_text(chain: str) -> str:
    return f"{chain} ="


def demonstrate(chain: str, generator: random.Random) -> str:
    """A working with mistakes, as text without the end token."""
    first, *rest = chain.split()
    total, steps = int(first), []
    for operator, operand in zip(rest[::2], rest[1::2], strict=True):
        exact = total + int(operand) if operator == "+" else total - int(operand)
        mistaken = exact + generator.choice(MISTAKES) if generator.random() < MISTAKE_RATE else exact
        found = min(LARGEST_TOTAL, max(-LARGEST_TOTAL, mistaken))
        steps.append(f"{total} {operator} {operand} = {found}")
        total = found
    return " ; ".join([*steps, f"Answer: {total}"])


def _chain(terms: int, largest: int, generator: random.Random) -> str:
    total = generator.randint(1, largest)
    words = [str(total)]
    for _ in range(terms - 1):
        operand = generator.randint(1, largest)
        possible = [sign for sign in (1, -1) if 0 <= total + sign * operand <= LARGEST_TOTAL]
        if not possible:
            operand, possible = 1, [1 if total == 0 else -1]
        sign = generator.choice(possible)
        total += sign * operand
        words += ["+" if sign > 0 else "-", str(operand)]
    return " ".join(words)
