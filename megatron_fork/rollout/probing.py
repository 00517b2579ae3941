"""Check that servers have the policy's weights: a few tokens of each server are compared with the policy's log-probs.

A server can take an update without an error and still answer with other weights; a tied LM head that keeps its old values is
the known case. Only the server's log-probs show that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_fork.distributed import collectives, device
from megatron_fork.errors import RolloutError
from megatron_fork.experience import Batch, Prompt, Trajectory
from megatron_fork.policy import Policy
from megatron_fork.rollout.config import RolloutConfig
from megatron_fork.rollout.engine import Completion, Engine, Request

_TOKENS = 16


def probe(engine: Engine, policy: Policy, prompts: Sequence[Prompt], config: RolloutConfig) -> float:
    """Largest |server - policy| log-prob in nats over all servers; raises `RolloutError` above `probe_limit`.

    Every rank calls it. An embedded engine has no replicas, and is not checked.
    """
    if not config.probe_prompts:
        return 0.0
    asked = [prompts[number % len(prompts)] for number in range(config.probe_prompts)]
    # A server that reports what it draws from may refuse to draw from everything.
    asks = (config.top_p, config.top_k, config.min_p, True) if config.replays_mask else ()
    requests = [
        Request(number, prompt.tokens, number, config.temperature, min(_TOKENS, config.max_response_tokens), *asks)
        for number, prompt in enumerate(asked)
    ]
    of_ranks = collectives.gather_objects(engine.replicas(requests), policy.layout.world)
    answers = {name: completions for replicas in of_ranks for name, completions in replicas.items()}
    if not answers:
        return 0.0
    differences = compare(policy, asked, answers)
    worst = max(differences, key=lambda server: differences[server])
    if not differences[worst] <= config.probe_limit:
        raise RolloutError(
            f"after the weight update, log-probs of {worst} differ from the policy's by {differences[worst]:.3g} nats, "
            f"more than rollout.probe_limit={config.probe_limit}",
            hint="the server has another model or kept old weights (a tied LM head?); raise the limit for bf16 engines",
        )
    return differences[worst]


def compare(policy: Policy, asked: Sequence[Prompt], answers: dict[str, list[Completion]]) -> dict[str, float]:
    """The largest |engine - policy| log-prob in nats of each name in `answers`, which is the same on every rank.

    A completion's `number` is the place of its prompt in `asked`.
    """
    trajectories = [
        Trajectory(
            number=place * len(asked) + completion.number,
            prompt=asked[completion.number],
            response=completion.tokens,
            rollout_logprob=completion.logprob,
            finish_reason=completion.finish_reason,
            weight_version=completion.weight_version,
            experts=completion.experts,
            kept=completion.kept,
        )
        for place, completions in enumerate(answers.values())
        for completion in completions
    ]
    share = policy.share(Batch.of_trajectories(trajectories))
    logprob_t, _ = policy.statistics(share)
    assert share.rollout_logprob_t is not None
    server_t = torch.tensor([sequence.number // len(asked) for sequence in share.sequences], dtype=torch.long)
    server_t, difference_t = server_t[share.sequence_t], (logprob_t - share.rollout_logprob_t).abs()
    none = torch.zeros(1)  # if this rank has no token of a server
    worst = torch.stack([torch.cat([none, difference_t[server_t == place]]).max() for place in range(len(answers))])
    worst = collectives.all_reduce_max(worst.to(device()), policy.layout.world).cpu()
    return dict(zip(answers, worst.tolist(), strict=True))
