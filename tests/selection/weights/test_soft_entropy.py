"""Soft weights are sigmoid(s z) over their mean, which is 1; the slope goes from its start to its end."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.weighed import choose, mini_batch

from megatron_fork.selection import SelectionConfig
from megatron_fork.selection.config import SoftEntropy


@given(
    seed=st.integers(0, 9999),
    start=st.sampled_from([-2.0, 0.0]),
    end=st.sampled_from([1.0, 4.0]),
    updates=st.sampled_from([0, 8]),
    step=st.integers(0, 12),
    tokens=st.sampled_from(["all", "top", "random"]),
)
@settings(max_examples=60, deadline=None)
def test_its_formula(seed: int, start: float, end: float, updates: int, step: int, tokens: str) -> None:
    batch = mini_batch(seed)
    soft = SoftEntropy(start=start, end=end, updates=updates)
    found = choose(batch, SelectionConfig(tokens=tokens, weights=["soft_entropy"], soft_entropy=soft), step=step)
    plain = choose(batch, SelectionConfig(tokens=tokens), step=step)
    slope = end if step >= updates else start + (end - start) * step / updates
    entropies = batch["entropy"].double()[plain.mask].tolist()
    mean = math.fsum(entropies) / max(1, len(entropies))
    spread = math.sqrt(math.fsum((each - mean) ** 2 for each in entropies) / max(1, len(entropies))) + 1e-6
    raw = [1.0 / (1.0 + math.exp(-slope * (each - mean) / spread)) for each in entropies]
    average = math.fsum(raw) / max(1, len(raw))
    assert found.weight[plain.mask].tolist() == pytest.approx([each / average for each in raw], rel=1e-5)
    assert torch.equal(found.mask, plain.mask) and found.counted is None
    assert found.measures == {"soft_entropy_kept": pytest.approx(1.0), "soft_entropy_slope": pytest.approx(slope)}


def test_equal_entropies_weigh_the_same_and_nothing_chosen_is_legal() -> None:
    batch = mini_batch(0)
    batch["entropy"] = torch.full_like(batch["entropy"], 0.7)
    config = SelectionConfig(tokens="all", weights=["soft_entropy"])
    found = choose(batch, config)
    torch.testing.assert_close(found.weight[found.mask], torch.ones(int(found.mask.sum())))
    batch["candidate"][:] = False
    assert not choose(batch, config).mask.any()
