"""What a rank holds for the whole run: weights, gradients and optimizer state of every network, to the byte."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_fork.config import RunConfig
from megatron_fork.models import Footprint, ParameterCounts
from megatron_fork.policy import OptimizerConfig
from megatron_fork.rollout import engine_kind


@dataclass(frozen=True)
class Held:
    """Bytes of one network on one rank."""

    weights: float
    gradients: float = 0.0
    optimizer: float = 0.0
    on_host: float = 0.0
    """Of the optimizer's state, and not in the sum."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class Replicas:
    """Ranks that hold the same parameters, over which a distributed optimizer shards its state."""

    dense: int
    experts: int

    @classmethod
    def of(cls, config: RunConfig, ranks: int) -> Replicas:
        parallel = config.parallel
        data = parallel.data(ranks)
        return cls(data * parallel.context, ranks // (parallel.pipeline * parallel.expert * parallel.expert_tensor))


def optimizer_bytes(config: OptimizerConfig, footprint: Footprint, *, half: bool, replicas: Replicas) -> float:
    """Bytes of Adam's two float32 moments, and of float32 main parameters if the model's are in half precision.

    With a distributed optimizer the mean over the replicas: their shards differ by the padding of Megatron's buffers.
    """
    each = 12 if half else 8
    dense, experts = (replicas.dense, replicas.experts) if config.distributed else (1, 1)
    return each * (footprint.dense / dense + footprint.experts / experts)


def held_by_stage(config: RunConfig, counts: ParameterCounts, ranks: int) -> list[dict[str, Held]]:
    """For each pipeline stage, what a rank of it holds of every network of the recipe; raises `LayoutError`."""
    parallel, weight = config.parallel, config.policy.dtype.itemsize
    replicas = Replicas.of(config, ranks)

    def trained(optimizer: OptimizerConfig, footprint: Footprint) -> Held:
        state = optimizer_bytes(optimizer, footprint, half=weight < 4, replicas=replicas)
        waiting = state * optimizer.offload
        return Held(weight * footprint.total, 4.0 * footprint.total, state - waiting, waiting)

    stages = counts.stages(parallel)
    found = [{"policy": trained(config.optimizer, stage)} for stage in stages]
    if config.objective.advantage == "gae":
        for held, stage in zip(found, counts.stages(parallel, critic=True), strict=True):
            held["critic"] = trained(config.critic.optimizer, stage)
    if config.objective.kl_coef:
        for held, stage in zip(found, stages, strict=True):
            held["reference"] = Held(weight * stage.total)
    return found


def checkpoint_bytes(config: RunConfig, parameters: int) -> float:
    """Bytes of one checkpoint: weights and optimizer state of every network that is trained, over all ranks."""
    weight, networks = config.policy.dtype.itemsize, 2 if config.objective.advantage == "gae" else 1
    whole = OptimizerConfig(), Footprint(parameters, 0)
    state = optimizer_bytes(*whole, half=weight < 4, replicas=Replicas(1, 1))
    return networks * (weight * parameters + state)


def engine_weights(config: RunConfig, parameters: int) -> float:
    """Bytes of an engine's weights on each of the trainer's ranks; 0 if it has servers of its own."""
    kind = engine_kind(config.rollout.engine)
    if not kind.holds_weights:
        return 0.0
    return config.policy.dtype.itemsize * parameters / kind.ranks_per_engine(config.rollout)


def replica_ranks(config: RunConfig) -> int:
    """The number of ranks of which every possible number of ranks is a multiple."""
    parallel = config.parallel
    model = parallel.tensor * parallel.pipeline * parallel.context
    return math.lcm(model, parallel.expert * parallel.expert_tensor * parallel.pipeline)
