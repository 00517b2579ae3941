"""Which response tokens training would select, by entropies that there are already."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from megatron_fork import selection
from megatron_fork.errors import ConfigError
from megatron_fork.policy import TIE_TOLERANCE

Array = np.ndarray[Any, np.dtype[Any]]


def selected_tokens(entropy_t: Array, lengths: Array, config: selection.SelectionConfig) -> Array:
    """`[response tokens]` bool: the selection of `config` on responses of these lengths, taken as one mini-batch.

    The choice of tokens alone: `selection.weights` read advantages and log-probs, which entropies of other models do not have.
    Raises `ConfigError` for a scope of micro-batches, which traces do not have.
    """
    segment = selection.SCOPES[config.scope or ""].segment
    if segment == "micro_batch":
        raise ConfigError(
            f"selection.scope={config.scope}: traces have no micro-batches", hint="use minibatch or sequence"
        )
    sequences = torch.arange(len(lengths)).repeat_interleave(torch.as_tensor(lengths))
    chosen = selection.select_tokens(
        torch.from_numpy(np.ascontiguousarray(entropy_t)),
        torch.ones(len(entropy_t), dtype=torch.bool),
        replace(config, weights=[]),
        segments=sequences if segment == "sequence" else None,
        tie_tolerance=TIE_TOLERANCE,
        columns={"sequence": sequences},
    )
    return chosen.mask.numpy()
