"""Draws the responses that thought anchors need: going on from before each sentence of a response."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_fork.analysis.lenses.anchors import resampling_importance, sentence_starts
from megatron_fork.analysis.lenses.budget import TokenBudget
from megatron_fork.analysis.lenses.responses import LensResponse
from megatron_fork.analysis.lenses.scoring import Lens
from megatron_fork.rollout import Completion, Request, seed_of

# The final answers of (whole response tokens, reference answer) pairs.
Outcomes = Callable[[Sequence[tuple[Sequence[int], str]]], Sequence[Hashable]]


@dataclass
class Resampler:
    """Goes on from before every sentence `samples` times."""

    draw: Callable[[Sequence[Request]], Sequence[Completion]]
    outcomes: Outcomes
    budget: TokenBudget
    say: Callable[[str], None]
    samples: int
    longest: int
    """Tokens at which a response is cut."""
    temperature: float
    seed: int

    def anchors(self, responses: Sequence[LensResponse], *, most: int) -> tuple[Lens, list[list[tuple[str, float]]]]:
        """Of the first `most` responses: each token's sentence's importance; and of each response (sentence, nats) in order."""
        lens = Lens("anchors", [np.full(len(each.tokens), np.nan) for each in responses])
        plans = [(place, sentence_starts(each.texts, each.reasoning)) for place, each in enumerate(responses[:most])]
        costs = [self._cost(responses[place], starts) for place, starts in plans]
        read, drawn = sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)
        self.say(
            f"anchors: {sum(len(starts) for _, starts in plans):,} sentences of {len(plans):,} responses x {self.samples} "
            f"samples: reads {read:,} tokens, draws at most {drawn:,}"
        )
        sentences: list[list[tuple[str, float]]] = [[] for _ in responses]
        for (place, starts), (read, drawn) in zip(plans, costs, strict=True):
            if not self.budget.take(read + drawn):
                lens.left_out += 1
                continue
            tokens, answers = self._answers(place, responses[place], starts)
            lens.read += read
            lens.drawn += tokens
            self.budget.spent -= drawn - tokens  # what the responses were shorter than they might have been
            importance = resampling_importance(answers)
            ends = [*starts[1:], responses[place].reasoning]
            for start, end, value in zip(starts, ends, importance, strict=True):
                lens.values[place][start:end] = value
                sentences[place].append(("".join(responses[place].texts[start:end]), value))
        return lens, sentences

    def _cost(self, response: LensResponse, starts: Sequence[int]) -> tuple[int, int]:
        """(tokens read, tokens drawn at most)."""
        read = sum(self.samples * (len(response.prompt) + start) for start in starts)
        return read, sum(self.samples * max(1, self.longest - start) for start in starts)

    def _answers(self, place: int, response: LensResponse, starts: Sequence[int]) -> tuple[int, list[list[Hashable]]]:
        """(tokens drawn, `[sentences + 1][samples]` final answers)."""
        requests = [
            Request(
                number=number * self.samples + sample,
                tokens=(*response.prompt, *response.tokens[:start]),
                seed=seed_of(self.seed, place, number, sample),
                temperature=self.temperature,
                max_tokens=max(1, self.longest - start),
            )
            for number, start in enumerate(starts)
            for sample in range(self.samples)
        ]
        drawn = sorted(self.draw(requests), key=lambda each: each.number)
        wholes = [[*response.tokens[: starts[each.number // self.samples]], *each.tokens] for each in drawn]
        found = self.outcomes([(whole, response.answer) for whole in [*wholes, list(response.tokens)]])
        rows = [list(found[first : first + self.samples]) for first in range(0, len(wholes), self.samples)]
        # Behind the last sentence there is the response's own answer alone.
        return sum(len(each.tokens) for each in drawn), [*rows, [found[-1]] * self.samples]
