"""The layout of the ranks: the parallel sizes and their process groups.

Megatron keeps its process groups in module state; only this file reads them. All other code takes a group as argument.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist

from megatron_fork.distributed.config import ParallelConfig


@dataclass(frozen=True)
class Layout:
    """The process groups of this rank."""

    config: ParallelConfig
    world: dist.ProcessGroup
    tensor: dist.ProcessGroup
    pipeline: dist.ProcessGroup
    context: dist.ProcessGroup
    data: dist.ProcessGroup  # ranks with different sequences
    data_and_context: dist.ProcessGroup  # ranks with different tokens

    @property
    def is_first_stage(self) -> bool:
        return self.pipeline.rank() == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pipeline.rank() == self.pipeline.size() - 1

    @property
    def last_stage_rank(self) -> int:
        """Global rank of the last pipeline stage, which holds this rank's results."""
        return dist.get_global_rank(self.pipeline, self.pipeline.size() - 1)

    def __str__(self) -> str:
        sizes = {
            "tensor": self.tensor.size(),
            "pipeline": self.pipeline.size(),
            "virtual pipeline": self.config.virtual_pipeline,
            "context": self.context.size(),
            "expert": self.config.expert,
            "data": self.data.size(),
        }
        words = [f"{name} {size}" for name, size in sizes.items() if size > 1]
        if self.config.sequence:
            words.append("sequence parallel")
        return " x ".join(words) or "one rank"


@contextmanager
def parallel_layout(config: ParallelConfig) -> Iterator[Layout]:
    """Create Megatron's groups for `config` over the default process group, and destroy them at the end."""
    # Imported here: engines use `vocab_parallel`'s entropy too, and their processes have no megatron-core.
    from megatron.core import parallel_state

    config.data(dist.get_world_size())
    world = dist.group.WORLD
    assert world is not None
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.tensor,
        pipeline_model_parallel_size=config.pipeline,
        virtual_pipeline_model_parallel_size=config.virtual_pipeline if config.virtual_pipeline > 1 else None,
        context_parallel_size=config.context,
        expert_model_parallel_size=config.expert,
        expert_tensor_parallel_size=config.expert_tensor,
    )
    try:
        yield Layout(
            config=config,
            world=world,
            tensor=parallel_state.get_tensor_model_parallel_group(),
            pipeline=parallel_state.get_pipeline_model_parallel_group(),
            context=parallel_state.get_context_parallel_group(),
            data=parallel_state.get_data_parallel_group(),
            data_and_context=parallel_state.get_data_parallel_group(with_context_parallel=True),
        )
    finally:
        _leave_groups()


def _leave_groups() -> None:
    """Destroy Megatron's groups: Megatron only forgets them, and each would keep its threads and buffers."""
    from megatron.core import parallel_state

    kept = [value if isinstance(value, list) else [value] for value in vars(parallel_state).values()]
    groups = {group for values in kept for group in values if isinstance(group, dist.ProcessGroup)}
    parallel_state.destroy_model_parallel()
    for group in groups - {dist.group.WORLD}:
        with contextlib.suppress(ValueError):  # Megatron's list of groups also holds those of earlier layouts
            dist.destroy_process_group(group)
