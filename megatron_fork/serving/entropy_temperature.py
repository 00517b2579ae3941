"""A temperature that depends on the entropy of each token's distribution: the paper's intervention (arXiv 2506.01939, 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Unit

from megatron_fork.recipe import NonNegativeFloat, Settings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class EntropyTemperature(Settings, room="rollout.entropy_temperature"):
    """`high` where the entropy at temperature 1 is above `threshold` nats, `low` elsewhere."""

    threshold: Annotated[float, Unit("nats")] = 0.672
    """The paper's value: the 80th percentile of Qwen3-8B."""
    high: NonNegativeFloat = 1.0
    """Temperature above the threshold; 1 leaves a distribution as it is, 0 takes the most likely token."""
    low: NonNegativeFloat = 1.0
    """Temperature up to the threshold; 1 leaves a distribution as it is, 0 takes the most likely token."""

    @property
    def is_plain(self) -> bool:
        """Whether it leaves every distribution as it is."""
        return self.high == self.low == 1.0

    @property
    def parameters(self) -> list[float]:
        """One row of `parameters` for `scale_by_entropy`."""
        return [self.threshold, self.high, self.low]


def scale_by_entropy(logits: Tensor, parameters: Tensor) -> Tensor:
    """Logits divided by their temperature, `[rows, vocab]`, as a new tensor; at 0 only the most likely token is left.

    Args:
        logits: `[rows, vocab]`, any float dtype, before any other temperature.
        parameters: `[rows, 3]`: threshold in nats, temperature above it, temperature up to it.

    """
    # Here, because the settings above are read before torch is imported.
    import torch

    from megatron_fork.vocab_parallel import token_statistics

    targets = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    entropy = token_statistics(logits, targets).entropy
    threshold, high, low = parameters.to(logits.device).unbind(1)
    temperature = torch.where(entropy > threshold, high, low)[:, None]
    scaled = logits / torch.where(temperature == 0.0, 1.0, temperature).to(logits.dtype)
    if not bool((temperature == 0.0).any()):
        return scaled
    # A division by almost 0 would overflow, and share the probability among tokens that are equally likely.
    is_first = torch.zeros_like(scaled, dtype=torch.bool).scatter(1, scaled.argmax(1, keepdim=True), True)
    return scaled.masked_fill((temperature == 0.0) & ~is_first, -torch.inf)
