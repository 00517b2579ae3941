"""What the planner says an update needs beyond what is held, to stand beside the measured peak."""

from __future__ import annotations

from transformers import PretrainedConfig

from megatron_fork.config import RunConfig
from megatron_fork.models import ComputeConfig, ParameterCounts
from megatron_fork.planning import Load, Machine, Row, memory_by_stage
from megatron_fork.policy import PolicyConfig


def planned_gibibytes(
    hf_config: PretrainedConfig, compute: ComputeConfig, machine: Machine, length: int, ratio: float
) -> float:
    """GiB of an update in bf16 on one rank: a micro-batch of one sequence, `ratio` of its tokens trained."""
    config = RunConfig(policy=PolicyConfig(precision="bf16"), compute=compute)
    load = Load(Row((length,)), Row((length,)), selected=ratio)
    (stage,) = memory_by_stage(config, ParameterCounts.of(hf_config), machine, load, ranks=1, micro_batches=1)
    return max(stage.phases["backward"], stage.phases["LM head"]) / 2**30
