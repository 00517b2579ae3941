"""Rollouts that nobody drew: random tokens with rewards of both kinds, for a step that is only tried."""

from __future__ import annotations

import math
import random

import torch

from megatron_fork.experience import Trajectory, VersionSpan
from megatron_fork.policy import with_advantages
from megatron_fork.run import RunContext

_LONGEST = 48


def made_up_rollouts(context: RunContext, *, groups: int, samples: int) -> list[Trajectory]:
    """Trajectories with advantages, ordered by number and the same on every rank: half of each prompt group is right."""
    hf_config, chance = context.hf_config, random.Random(context.config.seed)
    longest = min(_LONGEST, context.config.rollout.max_response_tokens)
    # What random weights would say of any token.
    logprob = -math.log(hf_config.vocab_size)
    prompts = context.source.draw(groups, start=0, seed=context.config.seed)
    made = []
    for number in range(groups * samples):
        prompt = prompts[number // samples]
        length = chance.randint(1, longest)
        response = [chance.randrange(hf_config.vocab_size) for _ in range(length - 1)] + [context.stop_tokens[0]]
        made.append(
            Trajectory(
                number=number,
                prompt=prompt,
                response=response,
                rollout_logprob=[logprob] * length,
                finish_reason="stop",
                weight_version=0,
                experts=_experts(context, len(prompt.tokens) + length - 1),
                versions=(VersionSpan(0, 0, length),),
                reward=float(number % 2),
            )
        )
    return with_advantages(made, context.config.objective, group_size=samples)


def _experts(context: RunContext, tokens: int) -> torch.Tensor | None:
    """The first k experts for every token, where the recipe replays an engine's choice."""
    if not context.config.experts.replay:
        return None
    hf_config = context.hf_config
    k = hf_config.num_experts_per_tok
    return torch.arange(k, dtype=torch.int16).expand(tokens, hf_config.num_hidden_layers, k).contiguous()
