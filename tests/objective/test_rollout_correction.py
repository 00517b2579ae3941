"""Responses are rejected by all their tokens, and the mismatch sums are those of a plain loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.errors import ObjectiveError
from megatron_fork.objective import ObjectiveConfig, accepted_responses, policy_loss, rollout_mismatch


def logprobs(seed: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(trainer's, engine's, response of each token)."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.randn(tokens, generator=generator, dtype=torch.float64).abs()
    rollout = old + 0.05 * torch.randn(tokens, generator=generator, dtype=torch.float64)
    return old, rollout, torch.randint(0, 6, (tokens,), generator=generator) * -(2**33)


@given(seed=st.integers(0, 10_000), tokens=st.integers(0, 60), low=st.sampled_from([0.9, 0.98]), high=st.just(1.02))
@settings(max_examples=60, deadline=None)
def test_a_response_is_rejected_by_its_geometric_mean(seed: int, tokens: int, low: float, high: float) -> None:
    old, rollout, sequence = logprobs(seed, tokens)
    config = ObjectiveConfig(correction="sequence", sequence_low=low, sequence_high=high)
    expected = []
    for token in range(tokens):
        mine = [place for place in range(tokens) if sequence[place] == sequence[token]]
        ratio = math.prod(math.exp(old[place] - rollout[place]) for place in mine) ** (1 / len(mine))
        expected.append(low <= ratio <= high)
    assert accepted_responses(old, rollout, sequence, config).tolist() == expected


def test_one_bad_token_is_outweighed_by_a_long_response() -> None:
    old, rollout = torch.zeros(201), torch.zeros(201)
    rollout[[0, 1]] = -1.0  # ratio e in a response of 1 token, and in one of 200
    sequence = torch.tensor([7] + [3] * 200)
    kept = accepted_responses(old, rollout, sequence, ObjectiveConfig(correction="sequence"))
    assert kept.tolist() == [False] + [True] * 200


BOUNDS = {"tis_cap": 1.03, "icepop_low": 0.97, "icepop_high": 1.04}


@pytest.mark.parametrize("kind", ["none", "tis", "icepop", "sequence"])
@given(seed=st.integers(0, 10_000), tokens=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_mismatch_equals_a_loop(kind: str, seed: int, tokens: int) -> None:
    old, rollout, sequence = logprobs(seed, tokens)
    config = ObjectiveConfig(correction=kind, **BOUNDS)
    accepted = accepted_responses(old, rollout, sequence, config)
    found = rollout_mismatch(old, rollout, config, accepted=accepted)
    differences = [(old[token] - rollout[token]).item() for token in range(tokens)]
    changed = {
        "none": [False] * tokens,
        "tis": [math.exp(difference) > 1.03 for difference in differences],
        "icepop": [not 0.97 <= math.exp(difference) <= 1.04 for difference in differences],
        "sequence": [not kept for kept in accepted.tolist()],
    }[kind]
    assert found.tokens == tokens
    assert found.largest == max(abs(difference) for difference in differences)
    assert found.mean == pytest.approx(math.fsum(map(abs, differences)) / tokens, rel=1e-12)
    k3 = math.fsum(math.exp(difference) - 1 - difference for difference in differences) / tokens
    assert found.k3 == pytest.approx(k3, rel=1e-6, abs=1e-12)
    assert found.clipped == pytest.approx(sum(changed) / tokens, rel=1e-12)
    factors = [math.exp(abs(difference)) for difference in differences]
    assert found.factor == pytest.approx(math.fsum(factors) / tokens, rel=1e-12)


def test_k3_is_the_divergence_of_the_engine_from_the_trainer() -> None:
    engine, trainer = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.2])
    counts = (engine * 10).round().long()
    found = rollout_mismatch(
        trainer.log().repeat_interleave(counts), engine.log().repeat_interleave(counts), ObjectiveConfig()
    )
    assert found.k3 == pytest.approx((engine * (engine / trainer).log()).sum().item(), rel=1e-5)


def test_no_tokens_and_not_a_number() -> None:
    assert rollout_mismatch(torch.zeros(0), torch.zeros(0), ObjectiveConfig()) == (0.0, 0.0, 0.0, 0.0, 0, 1.0)
    assert accepted_responses(*torch.zeros(2, 0), torch.zeros(0, dtype=torch.long), ObjectiveConfig()).tolist() == []
    assert rollout_mismatch(torch.zeros(2), torch.tensor([0.0, math.nan]), ObjectiveConfig()).largest == math.inf


def test_weights_of_one_are_not_counted_as_capped() -> None:
    zero = torch.zeros(3)
    everything = torch.ones(3, dtype=torch.bool)
    _, metrics = policy_loss(
        zero,
        zero,
        zero,
        everything,
        ObjectiveConfig(correction="tis", tis_cap=1.0),
        normalizer=1.0,
        rollout_logprob=zero,
    )
    assert (metrics["correction_weight"].item(), metrics["correction_clipped"].item()) == (3.0, 0.0)


def test_bad_columns_are_named() -> None:
    column, numbers = torch.zeros(3), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ObjectiveError, match=r"rollout_logprob has shape \[2\], old_logprob \[3\]"):
        rollout_mismatch(column, column[:2], ObjectiveConfig())
    with pytest.raises(ObjectiveError, match=r"sequence has shape \[2\], old_logprob \[3\]"):
        accepted_responses(column, column, numbers[:2], ObjectiveConfig())
    with pytest.raises(ObjectiveError, match=r"objective.correction needs accepted; correction is sequence"):
        rollout_mismatch(column, column, ObjectiveConfig(correction="sequence"))
