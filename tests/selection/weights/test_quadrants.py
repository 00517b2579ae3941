"""Each token has the weight of its quadrant, and a quadrant of weight 0 is out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.restated import restated
from support.weighed import choose, mini_batch

from megatron_fork.errors import ConfigError
from megatron_fork.selection import SelectionConfig
from megatron_fork.selection.config import Quadrants

NAMES = ("positive_high", "negative_high", "positive_low", "negative_low")


@given(
    seed=st.integers(0, 9999),
    weights=st.tuples(*[st.sampled_from([0.0, 0.5, 1.0, 3.0])] * 4).filter(any),
    ratio=st.sampled_from([0.2, 0.5]),
    scope=st.sampled_from(["minibatch", "sequence"]),
    rule=st.sampled_from(["threshold", "exact_k"]),
)
@settings(max_examples=60, deadline=None)
def test_its_formula(seed: int, weights: tuple[float, ...], ratio: float, scope: str, rule: str) -> None:
    batch, by_name = mini_batch(seed), dict(zip(NAMES, weights, strict=True))
    config = SelectionConfig(
        tokens="all", ratio=ratio, scope=scope, rule=rule, weights=["quadrants"], quadrants=Quadrants(**by_name)
    )
    found = choose(batch, config)
    as_top = SelectionConfig(ratio=ratio, scope=scope, rule=rule)
    ids = batch["response"] * 2**24 + batch["place"]
    high, _ = restated(batch["entropy"], batch["candidate"], as_top, segments=batch["sequence"], ids=ids)
    names = [
        f"{'positive' if advantage > 0 else 'negative'}_{'high' if is_high else 'low'}"
        for advantage, is_high in zip(batch["advantage"].tolist(), high, strict=True)
    ]
    candidate = batch["candidate"].tolist()
    expected = [by_name[name] if is_one else 0.0 for name, is_one in zip(names, candidate, strict=True)]
    assert found.weight.tolist() == expected and found.mask.tolist() == [weight > 0 for weight in expected]
    for name in NAMES:
        share = sum(is_one and each == name for each, is_one in zip(names, candidate, strict=True))
        assert found.measures[f"quadrants_{name}"] == pytest.approx(share / max(1, sum(candidate)))


def test_weights_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"selection\.quadrants has a weight of 0 for every token"):
        Quadrants(positive_high=0.0, negative_high=0.0)


def test_its_defaults_are_the_papers_choice_of_tokens() -> None:
    for seed in range(5):
        batch = mini_batch(seed)
        quadrants = choose(batch, SelectionConfig(tokens="all", weights=["quadrants"]))
        assert torch.equal(quadrants.mask, choose(batch, SelectionConfig()).mask)
