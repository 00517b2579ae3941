"""Memory of the LM head: on the selected rows in an update, on all response rows in the statistics pass.

The tensors are those of `vocab_parallel`: `fused_loss` keeps a chunk's logits over all columns, in whose place their gradient
comes, and sums d_weight in float32 if there are several chunks; `lm_head` holds one tile of logits, or two of half the size.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from megatron_fork import models
from megatron_fork.distributed import ParallelConfig
from megatron_fork.planning.layer import Machine
from megatron_fork.vocab_parallel import VocabParallelConfig

# Columns of a tile of the weight that is widened to float32, and of the gradient that goes by memory of its own, as
# `vocab_parallel` chooses them.
_GPU_WIDENED, _CPU_WIDENED, _FIRST_COLUMNS = 8192, 2048, 1024


def update_head(
    config: PretrainedConfig,
    parallel: ParallelConfig,
    head: VocabParallelConfig,
    machine: Machine,
    *,
    rows: float,
    itemsize: int,
) -> dict[str, float]:
    """Bytes at the LM head of an update on one rank, by what they are; `rows`: of this rank that carry gradient."""
    columns, hidden = models.padded_vocab_size(config, parallel) // parallel.tensor, config.hidden_size
    chunk, whole = head.chunk_bytes(_device(machine)), 4.0 * rows * columns
    # Half precision: one chunk's product goes to Megatron's buffer, and autograd makes zeros of its own.
    of_weight = itemsize if whole <= chunk else 4
    scratch = min(chunk, whole) / (4 * columns) * _FIRST_COLUMNS * itemsize
    if not machine.on_gpu or head.fp32_head:
        # A tile of the weight, and of its gradient.
        scratch = 2 * 4.0 * min(columns, _GPU_WIDENED if machine.on_gpu else _CPU_WIDENED) * hidden
    return {
        "selected hidden states": rows * hidden * (itemsize + 4),
        "gradient of the weight": float(of_weight * columns * hidden),
        "logits": min(chunk, whole) + (scratch if itemsize < 4 else 0.0),
    }


def statistics_head(
    config: PretrainedConfig,
    parallel: ParallelConfig,
    head: VocabParallelConfig,
    machine: Machine,
    *,
    rows: float,
    itemsize: int,
) -> float:
    """Bytes at the LM head of a statistics pass over `rows` response tokens of this rank."""
    columns = models.padded_vocab_size(config, parallel) // parallel.tensor
    tile = min(4.0 * rows * columns, head.chunk_bytes(_device(machine)))
    return rows * (config.hidden_size * itemsize + 16) + tile


def whole_logits(config: PretrainedConfig, parallel: ParallelConfig, *, rows: float, itemsize: int) -> float:
    """What a head that makes all logits at once holds: logits in the model's dtype, float32 ones and their gradient, beside the
    gradients of the hidden states and of the weight.
    """
    columns = models.padded_vocab_size(config, parallel) // parallel.tensor
    return rows * columns * (itemsize + 4 + 4) + (rows + columns) * config.hidden_size * itemsize


def _device(machine: Machine) -> str:
    return "cuda" if machine.on_gpu else "cpu"
