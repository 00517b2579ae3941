"""The band keeps exactly the tokens whose surprisal over entropy lies in it; certain tokens have an index of 0."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.weighed import choose, mini_batch

from megatron_fork.errors import ConfigError
from megatron_fork.selection import SelectionConfig
from megatron_fork.selection.config import SurprisalBand

FLOOR = 1e-4


@given(seed=st.integers(0, 9999), bounds=st.sampled_from([(0.5, 2.0), (0.0, 1.0), (0.9, 1.1), (0.5, math.inf)]))
@settings(max_examples=60, deadline=None)
def test_its_formula(seed: int, bounds: tuple[float, float]) -> None:
    batch = mini_batch(seed)
    band = SurprisalBand(low=bounds[0], high=min(bounds[1], 1e30))
    found = choose(batch, SelectionConfig(tokens="all", weights=["surprisal_band"], surprisal_band=band))
    rows = zip(batch["logprob"].double().tolist(), batch["entropy"].double().tolist(), strict=True)
    index = [-logprob / (entropy + FLOOR) for logprob, entropy in rows]
    candidate = batch["candidate"].tolist()
    kept = [is_one and bounds[0] <= value <= bounds[1] for is_one, value in zip(candidate, index, strict=True)]
    assert found.mask.tolist() == kept and torch.equal(found.weight, found.mask.float())
    for name, outside in (("below", [v < bounds[0] for v in index]), ("above", [v > bounds[1] for v in index])):
        share = sum(a and b for a, b in zip(outside, candidate, strict=True)) / max(1, sum(candidate))
        assert found.measures[f"surprisal_band_{name}"] == pytest.approx(share)


@pytest.mark.parametrize("noise", [0.0, 1e-7, 3e-7])
def test_rounding_noise_of_certain_tokens_decides_nothing(noise: float) -> None:
    """Both are 0 in exact arithmetic; in float32 their quotient may be anything."""
    batch = mini_batch(1)
    batch["logprob"] = torch.full_like(batch["logprob"], -noise)
    batch["entropy"] = torch.full_like(batch["entropy"], 2e-7 - noise / 2)
    found = choose(batch, SelectionConfig(tokens="all", weights=["surprisal_band"]))
    assert not found.mask.any() and found.measures["surprisal_band_below"] == 1.0


def test_an_empty_band_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"selection\.surprisal_band\.low=2\.0 is not below high=1\.0"):
        SurprisalBand(low=2.0, high=1.0)
