"""Weights and normalizer make the sum over tokens the average that the config names."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_fork.errors import ObjectiveError
from megatron_fork.objective import ObjectiveConfig, policy_loss, token_weights


def tokens_of(seed: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(selected, candidate, sequence, value) with responses that have no candidate, or no selected token."""
    generator = torch.Generator().manual_seed(seed)
    sequence = torch.randint(0, 6, (tokens,), generator=generator) * 11
    candidate = (torch.rand(tokens, generator=generator) < 0.8) & (sequence != 22)
    selected = candidate & (torch.rand(tokens, generator=generator) < 0.4) & (sequence != 33)
    return selected, candidate, sequence, torch.randn(tokens, generator=generator, dtype=torch.float64)


def average(selected, candidate, sequence, value, config: ObjectiveConfig) -> float:
    """The average in words: a mean of means, or one quotient."""
    counted = selected if config.denominator == "selected" else candidate
    responses = sorted({number.item() for number in sequence[candidate]})
    if config.average == "token":
        return value[selected].sum().item() / max(1, int(counted.sum()))
    if config.average == "constant":
        return value[selected].sum().item() / max(1, len(responses)) / config.constant_length
    means = [
        value[selected & (sequence == number)].sum().item() / max(1, int((counted & (sequence == number)).sum()))
        for number in responses
    ]
    return sum(means) / max(1, len(means))


@pytest.mark.parametrize("denominator", ["selected", "all"])
@pytest.mark.parametrize("kind", ["token", "sequence", "constant"])
@given(seed=st.integers(0, 10_000), tokens=st.integers(0, 50))
@example(seed=249, tokens=26)
@settings(max_examples=40, deadline=None)
def test_is_the_average(kind: str, denominator: str, seed: int, tokens: int) -> None:
    selected, candidate, sequence, value = tokens_of(seed, tokens)
    config = ObjectiveConfig(average=kind, denominator=denominator, constant_length=9)
    weight, normalizer = token_weights(selected, candidate, sequence, config)
    loss, _ = policy_loss(
        torch.zeros_like(value), torch.zeros(tokens), value, selected, config, normalizer=normalizer, weight=weight
    )
    # Weights are float32: their rounding is measured by the terms, which may cancel, and not by what is left of them.
    size = average(selected, candidate, sequence, value.abs(), config)
    assert loss.item() == pytest.approx(-average(selected, candidate, sequence, value, config), rel=0, abs=2e-7 * size)


def test_examples() -> None:
    sequence = torch.tensor([5, 5, 5, 5, 2, 2, 8])
    candidate = torch.tensor([True, True, True, True, True, True, False])
    selected = torch.tensor([True, True, False, False, False, False, False])
    assert token_weights(selected, candidate, sequence, ObjectiveConfig()) == (None, 2.0)
    assert token_weights(selected, candidate, sequence, ObjectiveConfig(denominator="all")) == (None, 6.0)
    weight, normalizer = token_weights(selected, candidate, sequence, ObjectiveConfig(average="sequence"))
    assert (weight[selected].tolist(), normalizer) == ([0.5, 0.5], 2.0)
    weight, normalizer = token_weights(
        selected, candidate, sequence, ObjectiveConfig(average="sequence", denominator="all")
    )
    assert (weight[selected].tolist(), normalizer) == ([0.25, 0.25], 2.0)
    constant = ObjectiveConfig(average="constant", constant_length=100)
    assert token_weights(selected, candidate, sequence, constant) == (None, 200.0)


@pytest.mark.parametrize("kind", ["token", "sequence", "constant"])
def test_nothing_anywhere_can_be_divided_by(kind: str) -> None:
    nothing = torch.zeros(0, dtype=torch.bool)
    config = ObjectiveConfig(average=kind, constant_length=3)
    weight, normalizer = token_weights(nothing, nothing, torch.zeros(0, dtype=torch.long), config)
    assert normalizer >= 1.0 and (weight is None or weight.shape == (0,))
    none = torch.zeros(4, dtype=torch.bool)
    assert token_weights(none, none, torch.arange(4), config).normalizer >= 1.0


def test_bad_columns_are_named() -> None:
    flags, numbers = torch.ones(3, dtype=torch.bool), torch.arange(3)
    with pytest.raises(ObjectiveError, match=r"sequence has shape \[2\], selected \[3\]"):
        token_weights(flags, flags, numbers[:2], ObjectiveConfig())
    with pytest.raises(ObjectiveError, match=r"candidate is torch.int64, not bool"):
        token_weights(flags, numbers, numbers, ObjectiveConfig())
