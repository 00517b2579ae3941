"""How log-probs and entropies are computed from the LM head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_fork.recipe import NonNegativeMebibytes, Settings

KernelChoice = Literal["auto", "torch", "triton"]


@dataclass
class VocabParallelConfig(Settings, room="vocab_parallel"):
    """These settings change time and memory, and results only by rounding."""

    kernels: KernelChoice = "auto"
    """auto: Triton on a GPU if it is installed, otherwise torch."""
    chunk_mib: NonNegativeMebibytes = 0
    """Logits that exist at a time, in MiB; 0: 160 on a CPU, 512 on a GPU. A CPU's products need 256 rows of a vocabulary
    of 152k to run at full speed (below 192 rows they lose a quarter)."""

    def chunk_bytes(self, device_type: str) -> int:
        """Bytes of float32 logits that may exist at a time."""
        return (self.chunk_mib or (512 if device_type == "cuda" else 160)) << 20
