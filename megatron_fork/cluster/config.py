"""The nodes that a recipe is meant for."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_fork.cluster.slurm import SlurmConfig
from megatron_fork.errors import ConfigError
from megatron_fork.recipe import Gibibytes, NonNegativeInt, PositiveInt, Settings


@dataclass
class ClusterConfig(Settings, room="cluster"):
    """The nodes of a job. `plan` and `launch` read this; a run takes the ranks that it is started with."""

    nodes: PositiveInt = 1
    """Nodes with ranks of the trainer."""
    engine_nodes: NonNegativeInt = 0
    """Nodes with servers of `rollout.engine`, besides those of the trainer; 0: it runs in the trainer's processes."""
    gpus_per_node: NonNegativeInt = 8
    """GPUs of a node, with one rank of the trainer on each; 0: nodes without GPUs, one rank on each."""
    gpu: str = "H100"
    """Name of the GPU, as `nvidia-smi` has it or a part of that."""
    gpu_memory: Gibibytes = 80.0
    """Memory of one GPU."""
    engine_tensor: PositiveInt = 1
    """GPUs of one server, which hold a part of every layer each; a divisor of `gpus_per_node`."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def check(self) -> None:
        if not self.gpu.isprintable():
            raise ConfigError(
                f"cluster.gpu={self.gpu!r} is no GPU's name", hint="write it as nvidia-smi does, on one line"
            )
        if self.gpus_per_node % self.engine_tensor and self.gpus_per_node:
            raise ConfigError(
                f"cluster.engine_tensor={self.engine_tensor} does not divide cluster.gpus_per_node={self.gpus_per_node}",
                hint="a server runs on the GPUs of one node: choose a divisor",
            )

    @property
    def ranks(self) -> int:
        """Ranks of the trainer."""
        return self.nodes * max(1, self.gpus_per_node)

    @property
    def servers(self) -> int:
        """Servers of the engine; 0 where it runs in the trainer's processes."""
        return self.engine_nodes * max(1, self.gpus_per_node // self.engine_tensor)
