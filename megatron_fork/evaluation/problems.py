"""The problems of an evaluation: prompts by set and question, and the responses to them that are wanted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from megatron_fork.data import PromptSource
from megatron_fork.experience import Prompt
from megatron_fork.rollout import seed_of

Key = tuple[str, str, int]
"""(set, problem's id, sample) of a response."""


@dataclass(frozen=True)
class Problem:
    """A prompt of a set; its id is its question's, with a number behind it where the set repeats the question."""

    set: str
    id: str
    prompt: Prompt


@dataclass(frozen=True)
class Wanted:
    """One response to draw."""

    problem: Problem
    sample: int

    @property
    def key(self) -> Key:
        return self.problem.set, self.problem.id, self.sample

    def seed(self, seed: int) -> int:
        """Of its random numbers: of the run's seed, the set, the question and the sample, whatever else is drawn."""
        name = f"{self.problem.set}/{self.problem.id}".encode()
        return seed_of(seed, int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()), self.sample)


def problems_of(name: str, source: PromptSource) -> list[Problem]:
    """All held-out prompts of a source, which for a whole set are all that it has."""
    seen: Counter[str] = Counter()
    problems = []
    for prompt in source.held_out:
        question = source.prompt_id(prompt)
        seen[question] += 1
        problems.append(Problem(name, question if seen[question] == 1 else f"{question}-{seen[question]}", prompt))
    return problems


def digest(problems: Sequence[Problem]) -> str:
    """Of the texts and answers of a set, which a resumed evaluation must find as they were."""
    content = hashlib.blake2b(digest_size=8)
    for problem in problems:
        content.update(repr((problem.id, problem.prompt.text, problem.prompt.answer)).encode())
    return content.hexdigest()


def missing(problems: Sequence[Problem], samples: int, finished: Collection[Key]) -> list[Wanted]:
    """The responses that are still to be drawn: short prompts first, as engines that draw in batches take them."""
    by_length = sorted(problems, key=lambda problem: len(problem.prompt.tokens))
    wanted = [Wanted(problem, sample) for problem in by_length for sample in range(samples)]
    return [each for each in wanted if each.key not in finished]
