"""How log-probs and entropies are computed from the LM head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_fork.recipe import NonNegativeMebibytes, Settings

KernelChoice = Literal["auto", "torch", "triton"]


@dataclass
class VocabParallelConfig(Settings, room="vocab_parallel"):
    """Nothing here changes a result beyond rounding: only time and memory."""

    kernels: KernelChoice = "auto"
    """auto: Triton on a GPU where it is installed, else torch."""
    chunk_mib: NonNegativeMebibytes = 0
    """Logits that live at a time, in MiB; 0: 160 on a CPU, 512 on a GPU: 256 rows of a vocabulary of 152k are what
    a CPU's products need to run at full speed (below 192 rows they lose a quarter)."""

    def chunk_bytes(self, device_type: str) -> int:
        """Bytes of float32 logits that may live at a time."""
        return (self.chunk_mib or (512 if device_type == "cuda" else 160)) << 20
