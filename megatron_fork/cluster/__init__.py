"""The nodes of a job: how many train, how many draw responses, and what each has."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.cluster.config import ClusterConfig
else:
    __getattr__ = opened(__name__, __file__, former={"Config": "ClusterConfig"})

__all__ = ["ClusterConfig"]
