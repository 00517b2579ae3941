"""Generalised advantages and the critic's loss equal the recursion and the closed form, token by token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.errors import ObjectiveError
from megatron_fork.objective import Gae, ObjectiveConfig, generalized_advantages, group_advantages, value_loss


def recursion(rewards: list[float], values: list[float], sequence: list[int], gamma: float, lam: float) -> list[float]:
    """A_t = delta_t + gamma lam A_(t+1), from the back."""
    advantages = [0.0] * len(rewards)
    for token in reversed(range(len(rewards))):
        inside = token + 1 < len(rewards) and sequence[token + 1] == sequence[token]
        after, later = (values[token + 1], advantages[token + 1]) if inside else (0.0, 0.0)
        advantages[token] = rewards[token] + gamma * after - values[token] + gamma * lam * later
    return advantages


@given(
    lengths=st.lists(st.integers(1, 40), max_size=6),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=100, deadline=None)
def test_equals_the_recursion(lengths: list[int], gamma: float, lam: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Numbers that neither rise nor fit in 32 bits.
    numbers = (torch.arange(len(lengths)) * 7919 % 13 - 5) * 2**33
    sequence = numbers.repeat_interleave(torch.tensor(lengths, dtype=torch.long))
    rewards, values = torch.randn(2, len(sequence), generator=generator)
    advantages, returns = generalized_advantages(rewards, values, sequence, gamma=gamma, lam=lam)
    expected = recursion(rewards.tolist(), values.tolist(), sequence.tolist(), gamma, lam)
    assert advantages.dtype == returns.dtype == torch.float32
    assert advantages.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert returns.tolist() == pytest.approx((torch.tensor(expected) + values).tolist(), rel=1e-5, abs=1e-5)


def test_without_decay_an_outcome_is_reward_minus_value() -> None:
    values = torch.tensor([0.2, 0.5, 0.9, 0.1])
    advantages, returns = generalized_advantages(
        torch.tensor([0.0, 0.0, 1.0, -1.0]), values, torch.tensor([3, 3, 3, 8]), gamma=1.0, lam=1.0
    )
    assert advantages.tolist() == pytest.approx([0.8, 0.5, 0.1, -1.1])
    assert returns.tolist() == pytest.approx([1.0, 1.0, 1.0, -1.0])


def test_bad_columns_are_named() -> None:
    column, sequence = torch.zeros(3), torch.tensor([1, 1, 2])
    rates = {"gamma": 1.0, "lam": 1.0}
    with pytest.raises(ObjectiveError, match=r"values has shape \[2\], token_rewards \[3\]"):
        generalized_advantages(column, column[:2], sequence, **rates)
    with pytest.raises(ObjectiveError, match=r"values has shape \[1, 3\]"):
        generalized_advantages(column[None], column[None], sequence[None], **rates)
    with pytest.raises(ObjectiveError, match="sequence has 3 runs of 2 responses"):
        generalized_advantages(column, column, torch.tensor([1, 2, 1]), **rates)
    with pytest.raises(ObjectiveError, match="values holds a value that is not finite"):
        generalized_advantages(column, torch.tensor([0.0, math.nan, 0.0]), sequence, **rates)
    with pytest.raises(ObjectiveError, match=r"objective.advantage=gae"):
        group_advantages(column, sequence, ObjectiveConfig(advantage="gae"))


def critic(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old, moved, returns = torch.randn(3, 30, generator=generator, dtype=torch.float64)
    return {
        "values": old + 0.4 * moved,
        "old_values": old,
        "returns": returns,
        "mask": torch.rand(30, generator=generator) < 0.7,
        "weight": torch.rand(30, generator=generator, dtype=torch.float64),
    }


@pytest.mark.parametrize("clip", [0.0, 0.2])
@given(seed=st.integers(0, 10_000), parts=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_value_loss_equals_the_closed_form_and_adds_up(clip: float, seed: int, parts: int) -> None:
    made, config = critic(seed), ObjectiveConfig(gae=Gae(value_clip=clip))
    made["values"].requires_grad_()
    loss, metrics = value_loss(**made, config=config, normalizer=5.0)
    (gradient,) = torch.autograd.grad(loss, made["values"])
    total, slopes, clipped = 0.0, [0.0] * 30, 0
    for token in made["mask"].nonzero()[:, 0].tolist():
        value, old, target, weight = (
            made[name][token].item() for name in ("values", "old_values", "returns", "weight")
        )
        bounded = min(max(value, old - clip), old + clip) if clip else value
        worse = (bounded - target) ** 2 > (value - target) ** 2
        clipped += worse
        total += weight * (bounded - target if worse else value - target) ** 2 / 2 / 5.0
        slopes[token] = 0.0 if worse else weight * (value - target) / 5.0
    assert loss.item() == pytest.approx(total, rel=1e-12)
    assert gradient.tolist() == pytest.approx(slopes, rel=1e-12, abs=1e-15)
    error = (made["values"] - made["returns"])[made["mask"]]
    expected = {
        "value_tokens": len(error),
        "value_clipped": clipped,
        "value_error": error.sum().item(),
        "value_error_square": error.square().sum().item(),
        "return": made["returns"][made["mask"]].sum().item(),
        "return_square": made["returns"][made["mask"]].square().sum().item(),
    }
    assert {name: amount.item() for name, amount in metrics.items()} == pytest.approx(expected, rel=1e-12)
    part_of = torch.arange(30) % parts
    shares = [
        value_loss(**{name: column[part_of == part] for name, column in made.items()}, config=config, normalizer=5.0)
        for part in range(parts)
    ]
    assert sum(share.loss.item() for share in shares) == pytest.approx(loss.item(), rel=1e-12)
    for name, amount in metrics.items():
        assert sum(share.metrics[name].item() for share in shares) == pytest.approx(amount.item(), rel=1e-12)


def test_value_loss_names_bad_columns() -> None:
    for name, bad, message in [
        ("returns", torch.zeros(3), r"returns has shape \[3\], values \[30\]"),
        ("returns", torch.full((30,), math.nan), "returns holds a value that is not finite"),
        ("mask", torch.ones(30), "mask is torch.float32, not bool"),
    ]:
        with pytest.raises(ObjectiveError, match=message):
            value_loss(**{**critic(0), name: bad}, config=ObjectiveConfig(), normalizer=1.0)
    with pytest.raises(ObjectiveError, match=r"normalizer=0.0 is not positive"):
        value_loss(**critic(0), config=ObjectiveConfig(), normalizer=0.0)
