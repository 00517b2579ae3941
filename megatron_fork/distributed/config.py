"""The parallel sizes of a run, and whether the number of ranks is divisible by them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_fork.cluster import ClusterConfig
from megatron_fork.errors import LayoutError
from megatron_fork.recipe import PositiveInt, Settings


@dataclass
class ParallelConfig(Settings, room="parallel", error=LayoutError):
    """Parallel sizes; the data-parallel size is the world size divided by them."""

    tensor: PositiveInt = 1
    """Ranks over which heads, widths and vocabulary are sharded; a divisor of each."""
    pipeline: PositiveInt = 1
    """Ranks over which layers are divided; a divisor of their number."""
    virtual_pipeline: PositiveInt = 1
    """Model chunks on each pipeline stage, interleaved."""
    context: PositiveInt = 1
    """Ranks that share each sequence: each holds two chunks of it, one from each end."""
    expert: PositiveInt = 1
    """Ranks that share the experts of a layer; they are taken from the tensor, context and data ranks."""
    expert_tensor: PositiveInt = 1
    """Ranks over which each expert is sharded, independent of `tensor`."""
    sequence: bool = False
    """Also divide norms and their activations over the tensor ranks; needs `tensor` of 2 or more."""

    def check(self) -> None:
        if self.sequence and self.tensor == 1:
            raise LayoutError(
                "parallel.sequence=true with parallel.tensor=1",
                hint="sequence parallelism splits over the tensor ranks",
            )
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            raise LayoutError(
                f"parallel.virtual_pipeline={self.virtual_pipeline} with parallel.pipeline=1",
                hint="interleaving needs pipeline stages: raise parallel.pipeline",
            )

    def data(self, world_size: int, job: ClusterConfig | None = None) -> int:
        """Data-parallel size for a world size; raises `LayoutError` if that is not divisible by the other sizes.

        `job`: whose nodes make the world size; the error then names them.
        """
        sizes = vars(self)
        for names in (("tensor", "pipeline", "context"), ("expert_tensor", "expert", "pipeline")):
            needed = math.prod(sizes[name] for name in names)
            if not world_size % needed:
                continue
            said, ways = (
                "",
                f"{needed} ranks (cluster.nodes x cluster.gpus_per_node of a job, torchrun --nproc-per-node)",
            )
            if job is not None:
                said = f"cluster.nodes={job.nodes} x cluster.gpus_per_node={job.gpus_per_node}: "
                per_node = max(1, job.gpus_per_node)
                ways = f"{needed // math.gcd(needed, per_node)} nodes (cluster.nodes) or another cluster.gpus_per_node"
            raise LayoutError(
                f"{said}world size {world_size} is not a multiple of parallel.{' x '.join(names)} = "
                f"{' x '.join(str(sizes[name]) for name in names)} = {needed}",
                hint=f"use a multiple of {ways}, or {'lower parallel.expert' if 'expert' in names else 'change the sizes'}",
            )
        return world_size // (self.tensor * self.pipeline * self.context)

    @property
    def alignment(self) -> int:
        """A context rank's row is padded to a multiple of this many tokens, so that it divides over the tensor ranks."""
        return self.tensor if self.sequence else 1
