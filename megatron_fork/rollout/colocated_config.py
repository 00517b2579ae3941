"""Settings of vLLM in the trainer's processes."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_fork.errors import ConfigError


@dataclass
class ColocatedConfig:
    """vLLM in the trainer's processes."""

    tensor: int = 1
    """Consecutive ranks that form one engine, each with a part of every layer; `parallel.tensor` need not be the same."""
    gpu_memory_utilization: float = 0.4
    """Share of each GPU that the engine may hold while it is awake, beside the policy."""
    kv_cache_mebibytes: int = 0
    """Cache of keys and values on each rank; 0: what that share leaves, on a CPU 512."""
    sleep: bool = True
    """Give the GPU's memory back while the policy trains."""
    eager: bool = False
    """Without CUDA graphs: starts sooner and holds less memory, decodes more slowly."""
    bucket_mebibytes: int = 512
    """Weights that are handed over, and held twice, at a time."""

    def __post_init__(self) -> None:
        for name in ("tensor", "bucket_mebibytes"):
            if vars(self)[name] < 1:
                raise ConfigError(f"rollout.colocated.{name}={vars(self)[name]} is not a size", hint="give 1 or more")
        if self.kv_cache_mebibytes < 0:
            raise ConfigError(
                f"rollout.colocated.kv_cache_mebibytes={self.kv_cache_mebibytes} is negative",
                hint="0 takes what gpu_memory_utilization leaves",
            )
        if not 0.0 < self.gpu_memory_utilization < 1.0:
            raise ConfigError(
                f"rollout.colocated.gpu_memory_utilization={self.gpu_memory_utilization} is not in (0, 1)",
                hint="the policy lives on the same GPU: 0.4 leaves it more than half",
            )
