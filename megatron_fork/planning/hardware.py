"""What GPUs and the links between them can do, from their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_fork.distributed import peak_flops
from megatron_fork.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """Peaks of one GPU, in operations and bytes a second."""

    name: str
    flops: float
    """Dense products of bf16."""
    memory: float
    """Bandwidth of its memory."""
    link: float
    """To the other GPUs of its node, one way."""
    network: float
    """To other nodes, one way; one 400 Gb/s adapter a GPU, 200 Gb/s for Ampere."""


# Bandwidths by a part of the name, the more particular first: memory, NVLink one way (PCIe where there is none), network.
_BANDWIDTHS = {
    "GB200": (8.0e12, 900e9, 50e9),
    "B200": (8.0e12, 900e9, 50e9),
    "H100 PCIe": (2.0e12, 64e9, 50e9),
    "H100": (3.35e12, 450e9, 50e9),
    "H200": (4.8e12, 450e9, 50e9),
    "H800": (3.35e12, 200e9, 50e9),
    "H20": (4.0e12, 450e9, 50e9),
    "A100": (2.0e12, 300e9, 25e9),
    "A800": (2.0e12, 200e9, 25e9),
    "L40S": (0.86e12, 32e9, 25e9),
    "L40": (0.86e12, 32e9, 25e9),
}


# GiB of the largest kind that is sold under the name.
_MOST_MEMORY = {
    **{"GB200": 192, "B200": 192, "H100 PCIe": 96, "H100": 96, "H200": 144, "H800": 96, "H20": 144},
    **{"A100": 80, "A800": 80, "L40S": 48, "L40": 48},
}


def check_memory(name: str, gibibytes: float) -> None:
    """Raise `ConfigError` for more memory than any GPU of this name has."""
    known = next((each for each in _MOST_MEMORY if each.lower() in name.lower()), "")
    if known and gibibytes > _MOST_MEMORY[known]:
        raise ConfigError(
            f"cluster.gpu_memory={gibibytes:g} is more than a GPU of cluster.gpu={name} has: {_MOST_MEMORY[known]} GiB at most",
            hint="give GiB of one GPU, as nvidia-smi shows them, or name the GPU that it is",
        )


def gpu_named(name: str) -> Gpu:
    """The GPU of this name or a part of it; raises `ConfigError` for one whose data sheet is not known."""
    known = next((each for each in _BANDWIDTHS if each.lower() in name.lower()), "")
    flops = peak_flops(known)
    if flops is None:
        raise ConfigError(
            f"cluster.gpu={name} is no GPU whose speed is known", hint=f"choose one of {', '.join(_BANDWIDTHS)}"
        )
    return Gpu(name, flops, *_BANDWIDTHS[known])
