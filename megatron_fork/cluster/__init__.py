"""The nodes of a job: how many train, how many draw responses, and what each has."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.cluster.config import ClusterConfig
    from megatron_fork.cluster.host_memory import HostMemory, host_memory
    from megatron_fork.cluster.images import check_images, image_files
    from megatron_fork.cluster.job import job_script, job_variables
    from megatron_fork.cluster.slurm import SlurmConfig
else:
    __getattr__ = opened(__name__, __file__, former={"Config": "ClusterConfig"})

__all__ = [
    "ClusterConfig",
    "HostMemory",
    "SlurmConfig",
    "check_images",
    "host_memory",
    "image_files",
    "job_script",
    "job_variables",
]
