"""Scores responses with each lens: says what it will read before it starts, leaves out what the token budget does not hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_fork.analysis.lenses.budget import TokenBudget
from megatron_fork.analysis.lenses.dependence import (
    MutualInformation,
    normalised_cross_covariance,
    over_responses,
)
from megatron_fork.analysis.lenses.pruning import Objective, greedy_pruning, tokens_to_read
from megatron_fork.analysis.lenses.reader import ModelReader, Reading
from megatron_fork.analysis.lenses.responses import AnswerForm, LensResponse, by_prompt
from megatron_fork.analysis.lenses.variance import cross_rollout_deviation
from megatron_fork.errors import TraceError

Array = np.ndarray[Any, np.dtype[np.float64]]
_RESPONSES_A_TIME = 32


@dataclass
class Lens:
    """What one lens says of every response."""

    name: str
    values: list[Array]
    """Of each response `[tokens]`, larger for more important tokens; NaN where the lens says nothing."""
    read: int = 0
    """Tokens that the model read."""
    drawn: int = 0
    left_out: int = 0
    """Responses, or prompts, that the budget did not hold."""


@dataclass(frozen=True)
class ReferenceTokens:
    """Of a prompt's reference answer: what each token depends on, over the prompt's responses."""

    prompt_id: str
    rollouts: int
    tokens: Sequence[str]
    """What each adds to the text."""
    deviation: Array
    """Nats: the cross-rollout deviation of the log-prob."""
    entropy: Array
    """Nats: the mean over rollouts."""


@dataclass
class LensScorer:
    """One model's view of the responses."""

    reader: ModelReader
    encode: Callable[[str], Sequence[int]]
    """Token ids of a text, without special tokens."""
    texts: Callable[[Sequence[int]], Sequence[str]]
    """What each token adds to the text."""
    form: AnswerForm
    budget: TokenBudget
    say: Callable[[str], None]
    references: list[ReferenceTokens] = field(default_factory=list)

    def entropy(self, responses: Sequence[LensResponse]) -> Lens:
        """Token entropy in nats, of the traces or where they have none of the model (arXiv 2506.01939, Eq. 1)."""
        missing = [place for place, each in enumerate(responses) if each.entropy_t is None]
        lens = self._begin("entropy", responses, {place: responses[place].length for place in missing})
        for place, each in enumerate(responses):
            if each.entropy_t is not None:
                lens.values[place] = each.entropy_t
        for places in _some(self._taken(lens, {place: responses[place].length for place in missing})):
            readings = [Reading(responses[place].prompt, responses[place].tokens) for place in places]
            for place, scored in zip(places, self.reader.read(readings), strict=True):
                lens.values[place] = scored.entropy_t
        return lens

    def mutual_information(self, responses: Sequence[LensResponse], how: MutualInformation) -> Lens:
        """Dependence of each token's hidden state on the gold answer's; see `dependence`."""
        gold = [self._encoded(self.form.gold, each) for each in responses]
        costs = {place: each.length + len(gold[place]) for place, each in enumerate(responses)}
        lens = self._begin("mi", responses, costs)
        hidden: dict[int, Array] = {}
        answers: dict[int, Array] = {}
        for places in _some(self._taken(lens, costs)):
            readings = [Reading(responses[place].prompt, responses[place].tokens) for place in places]
            for place, scored in zip(places, self.reader.read(readings), strict=True):
                answer = self.reader.last_hidden(gold[place]).astype(np.float64)
                if how == "authors_code":
                    lens.values[place] = normalised_cross_covariance(scored.hidden_td.astype(np.float64), answer)
                else:
                    hidden[place], answers[place] = scored.hidden_td.astype(np.float64), answer
        if hidden:
            shared = over_responses(list(hidden.values()), np.stack(list(answers.values())))
            for place in hidden:
                lens.values[place] = shared[: len(responses[place].tokens)]
        return lens

    def variance(self, responses: Sequence[LensResponse]) -> Lens:
        """Cross-rollout deviation of the reference answers' tokens, in `references`; it says nothing of the responses' own."""
        groups = {prompt: places for prompt, places in by_prompt(responses).items() if len(places) > 1}
        answers = {prompt: self._encoded(self.form.text, responses[places[0]]) for prompt, places in groups.items()}
        bridges = {prompt: self.encode(self.form.bridge) if self.form.bridge else [] for prompt in groups}
        costs = {
            number: sum(
                len(responses[place].prompt) + responses[place].reasoning + len(bridges[prompt]) + len(answers[prompt])
                for place in places
            )
            for number, (prompt, places) in enumerate(groups.items())
        }
        lens = self._begin("variance", responses, costs)
        prompts = list(groups)
        for number in self._taken(lens, costs):
            prompt = prompts[number]
            readings = [self._answer_after(responses[place], responses[place].chain) for place in groups[prompt]]
            scored = self.reader.read(readings)
            self.references.append(
                ReferenceTokens(
                    prompt,
                    len(scored),
                    self.texts(answers[prompt]),
                    cross_rollout_deviation([each.logprob_t.tolist() for each in scored]),
                    np.mean([each.entropy_t for each in scored], axis=0),
                )
            )
        return lens

    def pruning(self, responses: Sequence[LensResponse], *, objective: Objective, a_round: int) -> Lens:
        """The place of each reasoning token in the order of removal; the last ones to go matter most."""
        costs = {
            place: tokens_to_read(each.reasoning, self._answer_after(each, ()).length, a_round=a_round)
            for place, each in enumerate(responses)
        }
        lens = self._begin("pruning", responses, costs)
        for place in self._taken(lens, costs):
            response = responses[place]

            def score(chains: Sequence[Sequence[int]], response: LensResponse = response) -> list[float]:
                readings = [self._answer_after(response, chain) for chain in chains]
                if objective == "answer":
                    return [float(scored.logprob_t.sum()) for scored in self.reader.read(readings)]
                # The same tokens, of which all behind the question are scored.
                count = len(response.prompt)
                wholes = [Reading(response.prompt, [*each.prefix[count:], *each.targets]) for each in readings]
                return [float(scored.logprob_t.mean()) for scored in self.reader.read(wholes)]

            lens.values[place] = response.spread(greedy_pruning(response.chain, score, a_round=a_round))
        return lens

    def _answer_after(self, response: LensResponse, chain: Sequence[int]) -> Reading:
        bridge = self.encode(self.form.bridge) if self.form.bridge else ()
        return Reading([*response.prompt, *chain, *bridge], self._encoded(self.form.text, response))

    def _encoded(self, text: str, response: LensResponse) -> list[int]:
        tokens = list(self.encode(text.replace("{answer}", response.answer)))
        if not tokens:
            raise TraceError(
                f"the reference answer of {response.prompt_id} has no tokens",
                hint="give traces with answers, or --answer",
            )
        return tokens

    def _begin(self, name: str, responses: Sequence[LensResponse], costs: dict[int, int]) -> Lens:
        left = (
            "" if self.budget.limit is None else f", {self.budget.limit - self.budget.spent:,} are left of the budget"
        )
        self.say(f"{name}: reads {sum(costs.values()):,} tokens{left}")
        return Lens(name, [np.full(len(each.tokens), np.nan) for each in responses])

    def _taken(self, lens: Lens, costs: dict[int, int]) -> list[int]:
        """The places that the budget holds, in order."""
        taken = [place for place, cost in costs.items() if self.budget.take(cost)]
        lens.read = sum(costs[place] for place in taken)
        lens.left_out = len(costs) - len(taken)
        return taken


def _some(places: Sequence[int]) -> list[Sequence[int]]:
    return [places[first : first + _RESPONSES_A_TIME] for first in range(0, len(places), _RESPONSES_A_TIME)]
