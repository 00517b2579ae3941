"""The policy's weights, as often as an engine asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from megatron_fork.conversion import iter_hf_weights
from megatron_fork.policy import Policy


@dataclass(frozen=True)
class PolicyWeights:
    """Hugging Face names and whole tensors, gathered anew at every pass, which all ranks make together."""

    policy: Policy

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter_hf_weights(self.policy.model)
