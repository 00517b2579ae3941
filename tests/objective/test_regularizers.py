"""The penalties have the gradients in expectation that the config says, and shaping never turns an advantage around."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.objective import Archer, EntropyShaping, ObjectiveConfig, policy_loss


def expected_gradient(estimator: str, logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Of the KL penalty as a loss, over all tokens of a small vocabulary, each as often as the policy samples it."""
    leaf = logits.clone().requires_grad_()
    logprob = torch.log_softmax(leaf, dim=0)
    loss, _ = policy_loss(
        logprob,
        logprob.detach(),
        torch.zeros(len(logits)),
        torch.ones(len(logits), dtype=torch.bool),
        ObjectiveConfig(kl_coef=1.0, kl_estimator=estimator),
        normalizer=1.0,
        reference_logprob=reference,
        weight=logprob.detach().exp(),
    )
    loss.backward()
    return leaf.grad


def test_what_each_kl_estimator_moves() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    reference = torch.log_softmax(other, dim=0)
    leaf = logits.clone().requires_grad_()
    logprob = torch.log_softmax(leaf, dim=0)
    (reverse,) = torch.autograd.grad((logprob.exp() * (logprob - reference)).sum(), leaf, retain_graph=True)
    (forward,) = torch.autograd.grad((reference.exp() * (reference - logprob)).sum(), leaf)
    assert expected_gradient("k1", logits, reference).abs().max().item() < 1e-15
    torch.testing.assert_close(expected_gradient("k2", logits, reference), reverse, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(expected_gradient("k3", logits, reference), forward, rtol=1e-12, atol=1e-15)
    assert (forward - reverse).abs().max().item() > 0.01


@pytest.mark.parametrize(("estimator", "total"), [("k1", 1.0), ("k2", 2.5), ("k3", math.exp(-2) + math.exp(1) - 1)])
def test_kl_metric_is_the_plain_sum(estimator: str, total: float) -> None:
    config = ObjectiveConfig(loss="archer", kl_coef=0.5, kl_estimator=estimator, archer=Archer(forking_kl=0.0))
    loss, metrics = policy_loss(
        torch.tensor([-1.0, -2.0], dtype=torch.float64),
        torch.tensor([-1.0, -2.0]),
        torch.zeros(2),
        torch.ones(2, dtype=torch.bool),
        config,
        normalizer=1.0,
        reference_logprob=torch.tensor([-3.0, -1.0]),
        forking=torch.tensor([True, False]),
        weight=torch.tensor([5.0, 3.0]),
    )
    assert metrics["kl"].item() == pytest.approx(total, rel=1e-12)
    last = {"k1": -1.0, "k2": 0.5, "k3": math.e - 2.0}[estimator]
    assert loss.item() == pytest.approx(0.5 * 3.0 * last, rel=1e-12)


@given(
    advantage=st.floats(-3, 3, width=32),
    entropy=st.floats(0, 9, width=32),
    alpha=st.sampled_from([0.1, 0.4, 5.0]),
    kappa=st.sampled_from([1.01, 2.0]),
)
@settings(max_examples=100, deadline=None)
def test_shaped_advantages(advantage: float, entropy: float, alpha: float, kappa: float) -> None:
    now = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    held = torch.tensor([entropy], dtype=torch.float64, requires_grad=True)
    config = ObjectiveConfig(entropy_shaping=EntropyShaping(alpha=alpha, kappa=kappa))
    loss, _ = policy_loss(
        now,
        torch.zeros(1),
        torch.tensor([advantage], dtype=torch.float64),
        torch.ones(1, dtype=torch.bool),
        config,
        normalizer=1.0,
        entropy=held,
    )
    loss.backward()
    shaped = -now.grad.item()
    assert shaped == pytest.approx(advantage + min(alpha * entropy, abs(advantage) / kappa), rel=1e-12)
    assert shaped >= advantage and shaped * advantage >= 0.0 and (shaped == 0.0) == (advantage == 0.0)
    assert held.grad is None  # the entropy is held constant


def test_correction_leaves_penalties_alone() -> None:
    nothing, everything = torch.zeros(1, dtype=torch.bool), torch.ones(1, dtype=torch.bool)
    loss, metrics = policy_loss(
        torch.tensor([-1.0]),
        torch.tensor([-1.0]),
        torch.tensor([7.0]),
        everything,
        ObjectiveConfig(correction="sequence", kl_coef=1.0, kl_estimator="k2", entropy_coef=0.5),
        normalizer=1.0,
        entropy=torch.tensor([3.0]),
        reference_logprob=torch.tensor([-3.0]),
        accepted=nothing,
    )
    assert loss.item() == pytest.approx(2.0 - 1.5)
    assert (metrics["correction_weight"].item(), metrics["correction_clipped"].item()) == (0.0, 1.0)
