"""Random generators of every rank.

Rollouts, mini-batches and selection draw from the recipe's seed and counters and do not need them. They are kept for random
numbers inside a model, such as dropout, and only a run with the same number of ranks can load them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from megatron_fork.errors import CheckpointError


def save(folder: Path) -> None:
    """Write this rank's generators."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "tracker": get_cuda_rng_tracker().get_states()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, folder / _name(dist.get_rank(), dist.get_world_size()))


def load(folder: Path) -> None:
    """Set this rank's generators, if the checkpoint was written by the same number of ranks."""
    file = folder / _name(dist.get_rank(), dist.get_world_size())
    if not file.is_file():
        return
    try:
        state = torch.load(file, weights_only=True)
        torch.set_rng_state(state["torch"])
        get_cuda_rng_tracker().set_states(state["tracker"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
    except Exception as error:  # torch's reader and its generators may raise anything
        raise CheckpointError(
            f"{file} does not hold generators: {' '.join(str(error).split())[:200] or type(error).__name__}",
            hint="the checkpoint is damaged: point LATEST to an earlier one",
        ) from error


def _name(rank: int, ranks: int) -> str:
    return f"generators-{rank:05d}-of-{ranks:05d}.pt"
