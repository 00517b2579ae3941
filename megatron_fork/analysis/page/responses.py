"""What the page is made of: responses with their facts and, flat, what is known of each of their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy

VERDICTS = ("right", "wrong", "not judged")


@dataclass(frozen=True)
class Facts:
    """One response; None where it is not known. `length`: response tokens."""

    set: str
    prompt_id: str
    prompt: str
    answer: str
    kind: str
    length: int
    finish_reason: str
    step: int | None = None
    sample: int | None = None
    reward: float | None = None
    advantage: float | None = None
    reason: str = ""

    @property
    def verdict(self) -> int:
        """Place in `VERDICTS`."""
        if self.reward is None:
            return 2
        return 0 if self.reward > 0 else 1


class Vocabulary:
    """The distinct texts of tokens, numbered in the order in which they came."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._number_of: dict[str, int] = {}

    def number(self, text: str) -> int:
        number = self._number_of.get(text)
        if number is None:
            number = self._number_of[text] = len(self.texts)
            self.texts.append(text)
        return number


@dataclass(frozen=True)
class Part:
    """Some responses: `facts` [responses], their tokens one after another, with `starts` [responses + 1].

    `tokens` are numbers of a `Vocabulary`; `entropy` and `logprob` are float32 in nats, NaN if unknown. `has_entropy`
    [responses]: whether it was measured.
    """

    facts: list[Facts]
    starts: numpy.ndarray
    tokens: numpy.ndarray
    entropy: numpy.ndarray
    logprob: numpy.ndarray
    selected: numpy.ndarray
    has_entropy: numpy.ndarray

    @property
    def lengths(self) -> numpy.ndarray:
        return numpy.diff(self.starts)


class Source(Protocol):
    """Where responses come from; `facts` and `parts` have them in the same order."""

    def facts(self) -> list[Facts]: ...

    def parts(self, vocabulary: Vocabulary) -> Iterator[Part]: ...


@dataclass(frozen=True)
class Sources:
    """All sources of a page, one after another; `truncated` names files whose last line is half-written."""

    each: list[Source]
    truncated: list[str] = field(default_factory=list)

    def facts(self) -> list[Facts]:
        return [facts for source in self.each for facts in source.facts()]

    def parts(self, vocabulary: Vocabulary) -> Iterator[Part]:
        for source in self.each:
            yield from source.parts(vocabulary)
