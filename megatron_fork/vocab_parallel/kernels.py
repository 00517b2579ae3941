"""Which code sweeps a tile of logits: Triton on a GPU, torch elsewhere."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from megatron_fork.errors import ConfigError
from megatron_fork.vocab_parallel.config import KernelChoice
from megatron_fork.vocab_parallel.tile import TileKernels, TorchKernels


def kernels_for(choice: KernelChoice, logits: Tensor) -> TileKernels:
    """The kernels for logits of this device and dtype; raises `ConfigError` where Triton is asked for and cannot run."""
    installed = importlib.util.find_spec("triton") is not None
    # Float64 is for gradient checks; the kernels sum in float32.
    if choice == "torch" or (choice == "auto" and not (logits.is_cuda and installed)) or logits.dtype == torch.float64:
        return TorchKernels()
    if not installed:
        raise ConfigError("vocab_parallel.kernels=triton, but Triton is not installed", hint="pip install triton")
    # Not at the top: Triton is optional, and takes a second to import.
    from megatron_fork.vocab_parallel import triton_tile

    return triton_tile
