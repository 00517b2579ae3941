"""vLLM's logits processor for the entropy-dependent temperature.

    vllm serve ... --logits-processors megatron_fork.serving.vllm_temperature:EntropyTemperatureProcessor

A request asks for it with `extra_args={"entropy_temperature": [threshold, high, low]}`, at temperature 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from megatron_fork.serving.entropy_temperature import scale_by_entropy

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.config import VllmConfig

_KEY = "entropy_temperature"


class EntropyTemperatureProcessor(LogitsProcessor):
    """Rows of the batch that ask for it, and their parameters."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, list[float]] = {}
        self._device = device
        self._index = torch.empty(0, dtype=torch.long)
        self._parameters = torch.empty(0, 3)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise ValueError unless there are three numbers, no temperature below 0; vLLM answers the request with it."""
        asked = _asked(sampling_params)
        if asked is not None and (len(asked) != 3 or min(asked[1:]) < 0.0):
            raise ValueError(f"{_KEY}={asked} is not [threshold, high, low] with temperatures of at least 0")

    def is_argmax_invariant(self) -> bool:
        """A temperature never changes the most likely token."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if process_dict_updates(self._rows, batch_update, lambda params, *_: _asked(params)):
            rows = sorted(self._rows)
            self._index = torch.tensor(rows, dtype=torch.long, device=self._device)
            self._parameters = torch.tensor([self._rows[row] for row in rows], device=self._device).reshape(-1, 3)

    def apply(self, logits: Tensor) -> Tensor:
        """Scale, in place, the rows of `[requests, vocab]` that asked for it."""
        if self._rows:
            logits[self._index] = scale_by_entropy(logits[self._index], self._parameters)
        return logits


def _asked(params: SamplingParams) -> list[float] | None:
    extra: dict[str, Any] = params.extra_args or {}
    return extra.get(_KEY)
