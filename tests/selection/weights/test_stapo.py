"""STAPO's mask leaves out exactly the tokens with A > 0, p < tau_p and H below its quantile, and averages over the rest."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.weighed import choose, mini_batch

from megatron_fork.objective import ObjectiveConfig, token_weights
from megatron_fork.selection import SelectionConfig
from megatron_fork.selection.config import Stapo


@given(
    seed=st.integers(0, 9999),
    probability=st.sampled_from([0.002, 0.05, 0.4]),
    quantile=st.sampled_from([0.2, 0.8, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_its_formula(seed: int, probability: float, quantile: float) -> None:
    batch = mini_batch(seed)
    settings_ = Stapo(probability=probability, entropy_quantile=quantile)
    found = choose(batch, SelectionConfig(tokens="all", weights=["stapo"], stapo=settings_))
    column = {name: values.double().tolist() for name, values in batch.items()}
    candidates = [place for place, is_one in enumerate(column["candidate"]) if is_one]
    falling = sorted((column["entropy"][place] for place in candidates), reverse=True)
    high = math.ceil(round((1.0 - quantile) * len(falling), 9))
    cut = falling[high - 1] if high else math.inf
    kept = [
        bool(column["candidate"][place])
        and not (
            column["advantage"][place] > 0.0
            and math.exp(column["logprob"][place]) < probability
            and column["entropy"][place] < cut
        )
        for place in range(len(column["entropy"]))
    ]
    assert found.mask.tolist() == kept and torch.equal(found.weight, found.mask.float())
    assert found.selected == sum(kept) and found.counted is None
    assert found.measures["stapo_kept"] == pytest.approx(sum(kept) / max(1, len(candidates)))
    weights = token_weights(found.mask, batch["candidate"], batch["sequence"], ObjectiveConfig())
    assert weights.normalizer == max(1, sum(kept))


def test_it_masks_something_here_and_nothing_of_the_highest_entropies() -> None:
    rare = Stapo(probability=0.4)
    masked = [
        choose(mini_batch(seed), SelectionConfig(tokens="all", weights=["stapo"], stapo=rare)) for seed in range(9)
    ]
    assert all(0.0 < found.measures["stapo_kept"] < 1.0 for found in masked)
    top = choose(mini_batch(0), SelectionConfig(tokens="top", weights=["stapo"], stapo=rare))
    assert top.measures["stapo_kept"] == 1.0
