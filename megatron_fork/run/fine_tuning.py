"""The warm start: the same policy, cross-entropy on demonstrations, through the same schedule as the update."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from megatron_fork.config import SupervisedConfig
from megatron_fork.data import PromptSource
from megatron_fork.distributed import collectives, device
from megatron_fork.experience import Batch
from megatron_fork.objective import PolicyLoss, supervised_loss
from megatron_fork.policy import Policy
from megatron_fork.run.console import Display
from megatron_fork.run.folder import RunFolder
from megatron_fork.vocab_parallel import TokenStatistics


def fine_tune(
    policy: Policy,
    source: PromptSource,
    config: SupervisedConfig,
    folder: RunFolder,
    display: Display,
    *,
    seed: int,
    first: int,
    should_stop: Callable[[], bool],
) -> int:
    """Imitate the source's demonstrations from step `first` on; the steps done, fewer than all if asked to stop."""
    with display.stage("sft", config.steps, done=first) as stage:
        for step in range(first, config.steps):
            started = time.perf_counter()
            batch = policy.share(Batch(source.demonstrations(config.batch, step=step, seed=seed)))
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
            folder.metrics("sft", step + 1, metrics)
            stage.advance(metrics, every_seconds=5.0)
            if should_stop():
                return step + 1
    return config.steps


def _global_count(batch: Batch, policy: Policy) -> int:
    count = torch.tensor(batch.response_tokens, device=device())
    return int(collectives.all_reduce_sum(count, policy.layout.data))
