"""A loss moves the policy and nothing else: whatever else it is given is constant, whatever graph that comes from."""

from itertools import product
from typing import get_args

import pytest
import torch

from megatron_fork.objective import EntropyShaping, ObjectiveConfig, policy_loss, value_loss
from megatron_fork.objective.config import Correction, KlEstimator
from megatron_fork.objective.losses import LOSSES

TOKENS = 12
CARRY = {"logprob", "entropy"}


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(TOKENS, generator=generator, dtype=torch.float64) * 0.3 - 1.0).requires_grad_()
        for name in ("logprob", "old_logprob", "advantage", "entropy", "rollout_logprob", "reference_logprob", "weight")
    }


@pytest.mark.parametrize(("loss", "correction", "kl"), product(LOSSES, get_args(Correction), get_args(KlEstimator)))
def test_only_the_policy_has_a_gradient(loss: str, correction: Correction, kl: KlEstimator) -> None:
    config = ObjectiveConfig(
        loss=loss,
        correction=correction,
        kl_coef=0.1,
        kl_estimator=kl,
        entropy_coef=0.01,
        entropy_shaping=EntropyShaping(alpha=0.4),
    )
    given = inputs()
    flags = torch.arange(TOKENS) % 2 == 0
    found = policy_loss(
        **given,
        mask=torch.arange(TOKENS) % 3 != 0,
        config=config,
        normalizer=7.0,
        sequence=torch.arange(TOKENS) // 4,
        forking=flags,
        covered=flags,
        accepted=flags,
    )
    found.loss.backward()
    assert {name for name, column in given.items() if column.grad is not None} == CARRY
    assert not any(column.requires_grad for column in found.metrics.values())


def test_only_the_critic_has_a_gradient() -> None:
    columns = {name: torch.randn(TOKENS).requires_grad_() for name in ("values", "old_values", "returns", "weight")}
    mask = torch.ones(TOKENS, dtype=torch.bool)
    value_loss(**columns, mask=mask, config=ObjectiveConfig(), normalizer=3.0).loss.backward()
    assert {name for name, column in columns.items() if column.grad is not None} == {"values"}
