"""Layouts that a number of GPUs allows, those of them that fit, and how many GPUs a recipe needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from transformers import PretrainedConfig

from megatron_fork import models
from megatron_fork.config import RunConfig
from megatron_fork.distributed import ParallelConfig
from megatron_fork.errors import LayoutError
from megatron_fork.models import ParameterCounts
from megatron_fork.planning.engines import EngineRoom
from megatron_fork.planning.hardware import Gpu
from megatron_fork.planning.layer import Machine
from megatron_fork.planning.memory import Load, StageMemory, memory_by_stage, micro_batches_of
from megatron_fork.planning.time import Fleet, StepTime, Work, step_time
from megatron_fork.rollout import engine_kind

# Of a GPU's memory: what the allocator cannot use, since freed blocks do not always fit what comes next.
_USABLE = 0.95
_MOST_NODES = 128


@dataclass(frozen=True)
class Setting:
    """What stays the same while layouts are compared."""

    counts: ParameterCounts
    parameters: int
    machine: Machine
    gpu: Gpu
    gpu_bytes: float
    work: Work

    @property
    def usable(self) -> float:
        return _USABLE * self.gpu_bytes


@dataclass(frozen=True)
class Estimate:
    """A recipe on some trainer ranks and engines."""

    config: RunConfig
    ranks: int
    fleet: Fleet
    stages: list[StageMemory]
    time: StepTime
    usable: float

    @property
    def peak(self) -> float:
        return max(stage.peak for stage in self.stages)

    @property
    def fullest(self) -> StageMemory:
        return max(self.stages, key=lambda stage: stage.peak)

    @property
    def gpus(self) -> int:
        colocated = self.config.cluster.engine_nodes == 0
        return self.ranks + (0 if colocated else self.fleet.engines * self.fleet.room.gpus)

    @property
    def fits(self) -> bool:
        return self.peak <= self.usable and self.fleet.room.fits


def estimate(config: RunConfig, setting: Setting, *, ranks: int, engines: int) -> Estimate:
    """Memory and time of a recipe under its own layout; raises `LayoutError` if the ranks do not divide."""
    count = micro_batches_of(config, ranks)
    by_load = [
        memory_by_stage(config, setting.counts, setting.machine, load, ranks=ranks, micro_batches=count)
        for load in Load.possible(config)
    ]
    stages = [max(of_stage, key=lambda stage: stage.peak) for of_stage in zip(*by_load, strict=True)]
    fleet = fleet_of(config, setting, ranks=ranks, engines=engines)
    time = step_time(
        config, setting.counts.config, setting.gpu, fleet, setting.work, ranks=ranks, parameters=setting.parameters
    )
    return Estimate(config, ranks, fleet, stages, time, setting.usable)


def fleet_of(config: RunConfig, setting: Setting, *, ranks: int, engines: int) -> Fleet:
    """`engines` servers, or with none the engines that share the trainer's GPUs."""
    share = config.rollout.colocated.gpu_memory_utilization if engines == 0 else 0.0
    gpus = config.cluster.engine_tensor if engines or not engine_kind(config.rollout.engine).takes_share else 0
    gpus = gpus or config.rollout.colocated.tensor
    room = EngineRoom.of(
        setting.counts.config,
        setting.parameters,
        gpus=gpus,
        gpu_bytes=setting.gpu_bytes,
        itemsize=config.policy.dtype.itemsize,
        share=share,
    )
    return Fleet(engines or max(1, ranks // gpus), room)


def legal_layouts(config: RunConfig, hf_config: PretrainedConfig, ranks: int) -> Iterator[ParallelConfig]:
    """Every layout of the model over `ranks` ranks, tensor ranks within a node."""
    has_experts = models.family_of(hf_config).has_experts
    of_node = max(1, config.cluster.gpus_per_node)
    for tensor in _powers(min(of_node, ranks)):
        for pipeline in _powers(min(16, ranks // tensor)):
            for context in _powers(min(16, ranks // tensor // pipeline)):
                for expert in _powers(min(64, ranks // pipeline)) if has_experts else [1]:
                    parallel = ParallelConfig(
                        tensor=tensor,
                        pipeline=pipeline,
                        context=context,
                        expert=expert,
                        expert_tensor=1 if expert > 1 or not has_experts else tensor,
                        sequence=tensor > 1,
                    )
                    try:
                        models.check_divides(hf_config, parallel)
                        parallel.data(ranks)
                    except LayoutError:
                        continue
                    yield parallel


def _powers(most: int) -> list[int]:
    return [2**power for power in range(int(math.log2(max(1, most))) + 1)]


def suggestions(config: RunConfig, setting: Setting, *, ranks: int, engines: int) -> list[Estimate]:
    """Layouts that fit, the fastest step first; ranks without a response in a mini-batch are no use."""
    responses = config.train.prompts_per_mini_batch * config.rollout.samples
    found = []
    for parallel in legal_layouts(config, setting.counts.config, ranks):
        if parallel.data(ranks) > responses or _groups_broken(config, setting.counts.config, parallel):
            continue
        each = estimate(replace(config, parallel=parallel), setting, ranks=ranks, engines=engines)
        if each.fits:
            found.append(each)
    return sorted(found, key=lambda each: (each.time.training, each.peak))


def _groups_broken(config: RunConfig, hf_config: PretrainedConfig, parallel: ParallelConfig) -> bool:
    """Whether groups of recomputed layers do not fill a stage."""
    layers = hf_config.num_hidden_layers // parallel.pipeline
    return config.compute.recompute == "full" and layers % config.compute.recompute_layers > 0


def fewest_nodes(config: RunConfig, setting: Setting) -> Estimate | None:
    """The fastest layout on the fewest trainer nodes that fit, with one node of engines if the recipe has any; or None."""
    of_node = max(1, config.cluster.gpus_per_node)
    for nodes in _powers(_MOST_NODES):
        cluster = replace(config.cluster, nodes=nodes, engine_nodes=min(1, config.cluster.engine_nodes))
        asked = replace(config, cluster=cluster)
        found = suggestions(asked, setting, ranks=nodes * of_node, engines=cluster.servers)
        if found:
            return found[0]
    return None


def balanced(setting: Setting, trainer: Estimate) -> Estimate | None:
    """The same trainer with as many engine nodes as make drawing as fast as training; None where no number does.

    The longest responses take their time on however many engines.
    """
    for nodes in range(1, _MOST_NODES + 1):
        cluster = replace(trainer.config.cluster, engine_nodes=nodes)
        best = estimate(replace(trainer.config, cluster=cluster), setting, ranks=trainer.ranks, engines=cluster.servers)
        if best.time.rollout <= best.time.training:
            return best
    return None


def largest_budget(config: RunConfig, setting: Setting, *, ranks: int, engines: int) -> int:
    """Tokens of a micro-batch that still fit, in steps of 1,024; 0 if not even the longest sequence does."""

    def fits(budget: int) -> bool:
        policy = replace(config.policy, tokens_per_micro_batch=budget)
        return estimate(replace(config, policy=policy), setting, ranks=ranks, engines=engines).fits

    low, high = 0, 1024
    while high <= 2**14 and fits(high * 1024):
        low, high = high, 2 * high
    low, high = (0, 1024) if low == 0 else (low, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * 1024) else (low, middle)
    return low * 1024
