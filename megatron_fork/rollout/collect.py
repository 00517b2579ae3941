"""From prompts to scored groups: every rank generates its share, and groups without signal are replaced.

Requests are dealt over all ranks of the world; their seeds come from the draw, so that the rollouts of a step are the same
under every layout. Afterwards every rank holds all trajectories.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from megatron_fork.data import PromptSource
from megatron_fork.distributed import collectives
from megatron_fork.experience import Prompt, Trajectory
from megatron_fork.rewards import RewardPool
from megatron_fork.rollout.config import Config
from megatron_fork.rollout.engine import Completion, Engine, Request


@dataclass(frozen=True)
class Rollouts:
    """The groups of a step: trajectories of one group stand together."""

    trajectories: list[Trajectory]
    prompts_drawn: int
    groups_sampled: int
    groups_kept: int
    rounds: int
    mean_reward: float
    """Over all sampled responses, those without signal included."""


class Collector:
    """Draws prompts, generates, scores, and keeps drawing until a step has enough groups with signal."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        source: PromptSource,
        rewards: RewardPool,
        *,
        world: collectives.Group,
        seed: int,
    ) -> None:
        self.config = config
        self.engine = engine
        self.source = source
        self.rewards = rewards
        self.world = world
        self.seed = seed

    def collect(self, groups: int, *, start: int) -> Rollouts:
        """`groups` groups, from prompt number `start` of the run's order on."""
        kept: list[list[Trajectory]] = []
        drawn = sampled = rounds = 0
        total_reward = 0.0
        while len(kept) < groups and rounds < self.config.max_rounds:
            prompts = self.source.draw(groups - len(kept), start=start + drawn, seed=self.seed)
            trajectories = self.sample(prompts, self.config.samples, first_draw=start + drawn)
            drawn += len(prompts)
            sampled += len(prompts)
            rounds += 1
            total_reward += sum(trajectory.reward for trajectory in trajectories)
            size = self.config.samples
            by_prompt = [trajectories[first : first + size] for first in range(0, len(trajectories), size)]
            kept += [group for group in by_prompt if not self.config.dynamic_sampling or _has_signal(group)]
            if not self.config.dynamic_sampling:
                break
        chosen = [replace(t, number=number) for number, t in enumerate(t for group in kept for t in group)]
        return Rollouts(chosen, drawn, sampled, len(kept), rounds, total_reward / max(1, sampled * self.config.samples))

    def sample(
        self, prompts: Sequence[Prompt], samples: int, *, first_draw: int, greedy: bool = False
    ) -> list[Trajectory]:
        """`samples` scored responses to each prompt, in order; `first_draw` seeds them."""
        requests = [
            self.request(place * samples + sample, prompt, _seed(self.seed, first_draw + place, sample), greedy=greedy)
            for place, prompt in enumerate(prompts)
            for sample in range(samples)
        ]
        answers: list[tuple[Completion, Prompt]] = []
        texts: list[str] = []
        with self.rewards.stream() as scoring:  # of what is finished, while the rest is generated
            for completion in self.engine.generate(self._share(requests)):
                prompt = prompts[completion.number // samples]
                answers.append((completion, prompt))
                texts.append(_text(self.source.tokenizer, completion.tokens))
                scoring.submit(texts[-1], prompt.answer)
            scores = scoring.results()
        mine = [
            Trajectory(
                number=completion.number,
                prompt=prompt,
                response=completion.tokens,
                rollout_logprob=completion.logprob,
                finish_reason=completion.finish_reason,
                weight_version=completion.weight_version,
                versions=completion.versions,
                experts=completion.experts,
                text=text,
                reward=score.value,
                reason=score.reason,
            )
            for (completion, prompt), text, score in zip(answers, texts, scores, strict=True)
        ]
        everyone = [trajectory for share in collectives.gather_objects(mine, self.world) for trajectory in share]
        return sorted(everyone, key=lambda trajectory: trajectory.number)

    def request(self, number: int, prompt: Prompt, seed: int, *, greedy: bool = False) -> Request:
        """For one response to a prompt, as the config has it drawn."""
        config = self.config
        by_entropy = None if greedy or config.entropy_temperature.is_plain else config.entropy_temperature
        return Request(
            number=number,
            tokens=prompt.tokens,
            seed=seed,
            temperature=0.0 if greedy else config.temperature,
            max_tokens=config.max_response_tokens,
            top_p=1.0 if greedy else config.top_p,
            top_k=0 if greedy else config.top_k,
            stop_tokens=tuple(config.stop_tokens),
            entropy_temperature=by_entropy,
        )

    def _share(self, requests: Sequence[Request]) -> Sequence[Request]:
        """What this rank draws: every rank its share, or the first all."""
        rank, ranks = collectives.rank(self.world), collectives.size(self.world)
        if self.engine.is_coordinated:
            return requests if rank == 0 else []
        return requests[rank::ranks]


def _has_signal(group: Sequence[Trajectory]) -> bool:
    return len({trajectory.reward for trajectory in group}) > 1


def _seed(*parts: int) -> int:
    return random.Random("/".join(map(str, parts))).getrandbits(62)


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    return tokenizer.decode(list(tokens), skip_special_tokens=True)
