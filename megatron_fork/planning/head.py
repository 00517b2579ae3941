"""Memory of the LM head: on the selected rows in an update, on all response rows in the statistics pass.

The tensors are those of `vocab_parallel`: `fused_loss` sums d_weight in float32 and keeps a chunk's logits over all columns,
`lm_head` holds one tile of them. On a GPU a half-precision product makes new tiles beside the chunk's place.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from megatron_fork import models
from megatron_fork.distributed import ParallelConfig
from megatron_fork.planning.layer import Machine
from megatron_fork.vocab_parallel import VocabParallelConfig

# Columns of a tile, as `vocab_parallel.head` chooses them.
_GPU_COLUMNS, _CPU_COLUMNS = 16384, 2048


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
    half_on_gpu = machine.on_gpu and itemsize < 4
    tile = min(columns, _GPU_COLUMNS if machine.on_gpu else _CPU_COLUMNS)
    logits = min(head.chunk_bytes(_device(machine)), 4.0 * rows * columns)
    # A half-precision gradient tile, and a product that is added to d_weight; a CPU widens its operands instead.
    scratch = logits / (4 * columns) * tile * itemsize + 4 * tile * hidden if itemsize < 4 else 0.0
    return {
        "selected hidden states": rows * hidden * (itemsize + 4),
        "gradient of the weight": 4.0 * columns * hidden,
        "logits": logits * (2 if half_on_gpu else 1) + scratch,
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
