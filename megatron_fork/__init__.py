"""Reinforcement learning on the forking tokens of a reasoning model, on megatron-core."""

from megatron_fork.version import __version__ as __version__
