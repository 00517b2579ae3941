"""The second-moment mask is the greedy one, token by token in float64, with equal log-ratios out or in together."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.weighed import choose, mini_batch

from megatron_fork.errors import ConfigError
from megatron_fork.selection import SelectionConfig
from megatron_fork.selection.config import SecondMoment
from megatron_fork.selection.weights.m2po import smallest_beyond


def greedy(distance: list[float], moment: float, tolerance: float = 0.0) -> float:
    """The largest goes until the mean square of the rest is at most `moment`; what is near the last that went goes too."""
    rising = sorted(distance)
    while rising and math.fsum(value**2 for value in rising) / len(rising) > moment:
        gone = rising.pop()
    return gone - tolerance if len(rising) < len(distance) else math.inf


@given(
    values=st.lists(
        st.one_of(st.floats(0, 8, width=32), st.sampled_from([0.0, 0.25, 1.0, 1e-30, 1e5])), min_size=0, max_size=40
    ),
    moment=st.sampled_from([1e-6, 0.04, 0.5, 30.0]),
)
@settings(max_examples=200, deadline=None)
def test_the_cut_is_the_greedy_one(values: list[float], moment: float) -> None:
    assert smallest_beyond(torch.tensor(values, dtype=torch.float32), moment, None) == greedy(values, moment)


@given(
    seed=st.integers(0, 9999),
    moment=st.sampled_from([0.005, 0.04, 0.08]),
    before=st.sampled_from(["old", "rollout"]),
    over=st.sampled_from(["all", "harmful"]),
)
@settings(max_examples=60, deadline=None)
def test_its_formula(seed: int, moment: float, before: str, over: str) -> None:
    batch = mini_batch(seed)
    chosen = SelectionConfig(tokens="all", weights=["m2po"], m2po=SecondMoment(moment=moment, before=before, over=over))
    found = choose(batch, chosen, tie_tolerance=1e-5)
    ratio = (batch["logprob"] - batch[f"{before}_logprob"]).tolist()
    advantage, candidate = batch["advantage"].tolist(), batch["candidate"].tolist()
    looked_at = [
        is_one and (over == "all" or a * r > 0) for is_one, a, r in zip(candidate, advantage, ratio, strict=True)
    ]
    beyond = greedy([abs(r) for r, it in zip(ratio, looked_at, strict=True) if it], moment, 1e-5)
    kept = [is_one and (not it or abs(r) < beyond) for is_one, it, r in zip(candidate, looked_at, ratio, strict=True)]
    assert found.mask.tolist() == kept and torch.equal(found.weight, found.mask.float())
    squares = [r**2 for r, it in zip(ratio, looked_at, strict=True) if it]
    assert found.measures["m2po_moment"] == pytest.approx(math.fsum(squares) / max(1, len(squares)), rel=1e-6)
    assert found.measures["m2po_moment_kept"] <= moment


def test_noise_among_equal_ratios_does_not_decide_which_of_them_stay() -> None:
    """Two of four equal ones would fit; in float32 their last bits depend on the layout."""
    masks = []
    for seed in range(20):
        noise = 1e-6 * torch.randn(24, generator=torch.Generator().manual_seed(seed))
        batch = {
            "entropy": torch.ones(24),
            "candidate": torch.ones(24, dtype=torch.bool),
            "sequence": torch.zeros(24, dtype=torch.long),
            "response": torch.zeros(24, dtype=torch.long),
            "place": torch.arange(24),
            "old_logprob": torch.zeros(24),
            "logprob": torch.cat([torch.zeros(20), torch.full((4,), -0.7)]) + noise,
        }
        masks.append(choose(batch, SelectionConfig(tokens="all", weights=["m2po"]), tie_tolerance=1e-5).mask)
    assert all(torch.equal(mask, masks[0]) for mask in masks) and int(masks[0].sum()) == 20


def test_at_the_first_update_nothing_goes() -> None:
    batch = mini_batch(0)
    batch["logprob"] = batch["old_logprob"]
    found = choose(batch, SelectionConfig(tokens="all", weights=["m2po"]))
    assert found.measures == {"m2po_kept": 1.0, "m2po_moment": 0.0, "m2po_moment_kept": 0.0}


def test_a_mask_that_could_never_act_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"selection\.entropy_policy=old with selection\.weights=\[m2po\]") as error:
        SelectionConfig(weights=["m2po"], entropy_policy="old")
    assert "selection.m2po.before=rollout" in error.value.hint
    SelectionConfig(weights=["m2po"], entropy_policy="old", m2po=SecondMoment(before="rollout"))
