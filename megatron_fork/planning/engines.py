"""The room of a rollout engine: its weights, the cache of keys and values, and how many sequences fit at once."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from megatron_fork import models

# Of a GPU's memory, as vLLM and SGLang take it unless told otherwise, and of which their activations and graphs need a part.
_UTILIZATION, _WORKING = 0.9, 4 * 2**30


def cache_bytes(config: PretrainedConfig, itemsize: int) -> int:
    """Bytes of keys and values of a token, over all GPUs of an engine."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * models.head_size(config) * itemsize


@dataclass(frozen=True)
class EngineRoom:
    """One engine of `gpus` GPUs."""

    gpus: int
    weights: float
    """Bytes, over all its GPUs."""
    cache: float
    """Bytes for keys and values, over all its GPUs; negative if the weights alone do not fit."""
    token: float
    """Bytes of a token's keys and values, over all its GPUs."""

    @property
    def fits(self) -> bool:
        return self.cache > 0

    @property
    def tokens(self) -> int:
        return max(0, int(self.cache / self.token))

    def sequences(self, length: int) -> int:
        """How many sequences of `length` tokens fit at once."""
        return self.tokens // length

    @classmethod
    def of(
        cls,
        config: PretrainedConfig,
        parameters: int,
        *,
        gpus: int,
        gpu_bytes: float,
        itemsize: int,
        share: float = 0.0,
    ) -> EngineRoom:
        """`share`: fraction of a GPU's memory that the engine may hold; 0: as a server takes it."""
        weights = float(itemsize * parameters)
        # Key-value heads that are fewer than the GPUs are held several times.
        copies = max(1.0, gpus / config.num_key_value_heads)
        room = gpus * ((share or _UTILIZATION) * gpu_bytes - _WORKING)
        return cls(gpus, weights, room - weights, cache_bytes(config, itemsize) * copies)
