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
    """Logits that exist at a time, in MiB; 0: 160 on a CPU; 960 on a GPU, or a quarter of its free memory if that is
    less. An update adds to d_weight once for the rows whose logits fit: at a vocabulary of 152k, 1,656 rows in 960 MiB.
    A CPU's products need 256 rows of it to run at full speed (below 192 rows they lose a quarter)."""
    fp32_head: bool = False
    """Widen hidden states and LM head to float32 for their products, whose gradients are then not rounded to half
    precision. Logits are float32 either way. A CPU always does; a GPU multiplies in TensorFloat-32, at half the speed
    of bfloat16."""
    second_stream: bool = True
    """On a GPU: sweep a tile of logits while the next is computed."""

    def chunk_bytes(self, device_type: str) -> int:
        """Bytes of float32 logits that may exist at a time, if there is memory."""
        return (self.chunk_mib or (960 if device_type == "cuda" else 160)) << 20
