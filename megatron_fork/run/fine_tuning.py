"""The warm start: the same policy, cross-entropy on demonstrations, through the same schedule as the update."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from megatron_fork.distributed import collectives, device
from megatron_fork.experience import Batch
from megatron_fork.objective import PolicyLoss, supervised_loss
from megatron_fork.policy import Policy
from megatron_fork.run.context import RunContext
from megatron_fork.vocab_parallel import TokenStatistics


def fine_tune(context: RunContext, policy: Policy, *, first: int) -> Iterator[int]:
    """Imitate the source's demonstrations from step `first` on; after each step, how many are done."""
    config, seed = context.config.sft, context.config.seed
    with context.display.stage("sft", config.steps, done=first) as stage:
        for step in range(first, config.steps):
            started = time.perf_counter()
            batch = policy.share(Batch(context.source.demonstrations(config.batch, step=step, seed=seed)))
            tokens = _global_count(batch, policy)

            def loss_of(statistics: TokenStatistics, _: Tensor, tokens: int = tokens) -> PolicyLoss:
                return supervised_loss(statistics.logprob, normalizer=tokens)

            everything = torch.ones(batch.response_tokens, dtype=torch.bool)
            rate = config.optimizer.rate_at(step, config.steps)
            update = policy.update(batch, everything, loss_of, learning_rate=rate)
            seconds = time.perf_counter() - started
            metrics = {
                "loss": update.loss,
                "gradient_norm": update.gradient_norm,
                "learning_rate": rate,
                "tokens_per_second": tokens / seconds,
                "time/step": seconds,
            }
            context.folder.metrics("sft", step + 1, metrics)
            stage.advance(metrics, every_seconds=5.0)
            yield step + 1


def _global_count(batch: Batch, policy: Policy) -> int:
    count = torch.tensor(batch.response_tokens, device=device())
    return int(collectives.all_reduce_sum(count, policy.layout.data))
