"""SGLang's logit processor for the entropy-dependent temperature.

A server runs it only with `--enable-custom-logit-processor`, which executes what clients send: use it only on loopback. The
client sends no code, only the name of the class below, which the server imports.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor
from torch import Tensor

from megatron_fork.serving.entropy_temperature import scale_by_entropy


class EntropyTemperatureProcessor(CustomLogitProcessor):
    """Each row's `custom_params` holds `entropy_temperature: [threshold, high, low]`."""

    def __call__(self, logits: Tensor, custom_param_list: list[dict[str, Any]] | None = None) -> Tensor:
        """New logits `[rows, vocab]` of the requests that asked for this processor."""
        rows = [params["entropy_temperature"] for params in custom_param_list or []]
        return scale_by_entropy(logits, torch.tensor(rows))
