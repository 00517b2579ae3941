"""On the device that there is, `kth_largest` equals sorting and `select_tokens` marks what it marks on a CPU."""

import math

import pytest
import torch
from support.gpu import DEVICE

from megatron_fork.selection import SelectionConfig, kth_largest, select_tokens

pytestmark = pytest.mark.gpu

# On a GPU more than one block of the search, whose size there is 2^24.
MANY = 3 * 2**23 + 5 if DEVICE == "cuda" else 3 * 2**17 + 5


def values_of(name: str) -> torch.Tensor:
    """On the CPU, so that they are the same numbers on every device."""
    generator, place = torch.Generator().manual_seed(11), torch.arange(MANY)
    uniform = torch.rand(MANY, generator=generator)
    exponential = torch.empty(MANY).exponential_(1.0, generator=generator)
    return {
        "entropies": exponential,
        "about zero": torch.randn(MANY, generator=generator),
        "half are zero": exponential.where(uniform < 0.5, 0.0),
        "both zeros": torch.where(uniform < 0.5, 0.0, -0.0),
        "one value": torch.full((MANY,), -2.5),
        "two values": torch.where(uniform < 0.2, 1.0 + 2.0**-23, 1.0),
        # Arithmetic on a GPU may take them for zero.
        "denormals": (place % 997 * 2.0**-149).float(),
        "infinities": exponential.where(uniform < 0.7, math.inf).where(uniform > 0.1, -math.inf),
    }[name]


NAMES = ["entropies", "about zero", "half are zero", "both zeros", "one value", "two values", "denormals", "infinities"]


@pytest.mark.parametrize("name", NAMES)
def test_kth_largest_equals_sorting(name: str) -> None:
    values = values_of(name)
    ordered = values.sort(descending=True).values
    on_device = values.to(DEVICE)
    for k in (1, MANY // 1000, MANY // 5, MANY // 2, MANY):
        assert kth_largest(on_device, k) == ordered[k - 1].item(), k
    assert torch.equal(on_device.cpu(), values)


@pytest.mark.parametrize("scope", ["minibatch", "sequence"])
@pytest.mark.parametrize("tokens", ["top", "bottom", "random", "all"])
@pytest.mark.parametrize("rule", ["threshold", "exact_k", "quantile"])
def test_marks_are_those_of_a_cpu(scope: str, tokens: str, rule: str) -> None:
    generator = torch.Generator().manual_seed(5)
    entropy = torch.empty(64, 257).exponential_(1.0, generator=generator)
    entropy[torch.rand(64, 257, generator=generator) < 0.3] = 0.0
    mask = torch.rand(64, 257, generator=generator) < 0.8
    config = SelectionConfig(scope=scope, tokens=tokens, rule=rule, ratio=0.2)
    wanted = select_tokens(entropy, mask, config)
    found = select_tokens(entropy.to(DEVICE), mask.to(DEVICE), config)
    assert torch.equal(found.mask.cpu(), wanted.mask)
    assert (found.selected, found.candidates) == (wanted.selected, wanted.candidates)
