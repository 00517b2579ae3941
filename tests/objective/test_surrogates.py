"""Every loss and its gradient equal a token-by-token float64 restatement of its paper, and parts add up to the whole."""

import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_fork.objective import Archer, EntropyShaping, ObjectiveConfig, needs_whole_sequences, policy_loss

TOKENS = 34
NORMALIZER = 7.5


def columns(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> Tensor:
        return torch.randn(TOKENS, generator=generator, dtype=torch.float64) * scale

    def flags(share: float) -> Tensor:
        return torch.rand(TOKENS, generator=generator) < share

    old = -normal(2.0).abs()
    return {
        "logprob": old + normal(0.7),
        "old_logprob": old,
        "advantage": normal(1.5) * flags(0.9),
        "mask": flags(0.7),
        "entropy": normal(1.0).abs(),
        "rollout_logprob": old + normal(0.6),
        "reference_logprob": old + normal(0.8),
        "sequence": torch.randint(0, 5, (TOKENS,), generator=generator) * 2**40 - 3,
        "weight": normal(1.0).abs(),
        "forking": flags(0.4),
        "covered": flags(0.3),
        "accepted": flags(0.8),
    }


def call(made: dict[str, Tensor], config: ObjectiveConfig) -> Any:
    return policy_loss(**made, config=config, normalizer=NORMALIZER)


def pessimistic(ratio: Tensor, advantage: float, low: float, high: float, dual: float) -> Tensor:
    """PPO's clip by cases: it only ever takes away what an update would gain."""
    if advantage >= 0:
        bounded = high if ratio > high else ratio
    elif dual and ratio > dual:
        bounded = dual
    else:
        bounded = low if ratio < low else ratio
    return 0.0 * ratio + bounded * advantage


def surrogate_of(token: int, now: Tensor, made: dict[str, Tensor], config: ObjectiveConfig) -> Tensor:
    """The objective of a token, `now` being the log-probs, all of them, with gradient."""
    old, advantage = made["old_logprob"], made["advantage"][token].item()
    if config.entropy_shaping.alpha:
        shaping = config.entropy_shaping
        advantage += min(shaping.alpha * made["entropy"][token].item(), abs(advantage) / shaping.kappa)
    ratio = torch.exp(now[token] - old[token])
    low, high, dual = 1 - config.clip_low, 1 + config.clip_high, config.dual_clip
    if config.loss == "cispo":
        held = min(max(ratio.item(), low), high)
        return held * advantage * now[token]
    if config.loss == "kl_cov":
        return pessimistic(ratio, advantage, 0.0, math.inf, dual)
    if config.loss == "clip_cov" and made["covered"][token]:
        return 0.0 * now[token]
    if config.loss == "archer" and made["forking"][token]:
        low, high = 1 - config.archer.forking_clip_low, 1 + config.archer.forking_clip_high
    if config.loss == "gspo":
        mine = [
            place
            for place in range(TOKENS)
            if made["mask"][place] and made["sequence"][place] == made["sequence"][token]
        ]
        mean = math.fsum((now[place] - old[place]).item() for place in mine) / len(mine)
        # The value is s, its gradient s grad logp_t.
        ratio = math.exp(mean) * (1.0 + now[token] - now[token].item())
    return pessimistic(ratio, advantage, low, high, dual)


def penalty_of(token: int, now: Tensor, entropy: Tensor, made: dict[str, Tensor], config: ObjectiveConfig) -> Tensor:
    total = -config.entropy_coef * entropy[token]
    difference = now[token] - made["reference_logprob"][token]
    estimate = {
        "k1": difference,
        "k2": difference * difference * 0.5,
        "k3": torch.expm1(-difference) + difference,
    }[config.kl_estimator]
    share = config.archer.forking_kl if config.loss == "archer" and made["forking"][token] else 1.0
    total = total + config.kl_coef * share * estimate
    if config.loss == "kl_cov" and made["covered"][token]:
        total = total + config.cov_kl_coef * torch.abs(now[token] - made["old_logprob"][token])
    return total


def correction_of(token: int, made: dict[str, Tensor], config: ObjectiveConfig) -> float:
    weight = math.exp(made["old_logprob"][token].item() - made["rollout_logprob"][token].item())
    return {
        "none": 1.0,
        "tis": min(weight, config.tis_cap),
        "icepop": weight if config.icepop_low <= weight <= config.icepop_high else 0.0,
        "sequence": float(made["accepted"][token]),
    }[config.correction]


def restated(made: dict[str, Tensor], config: ObjectiveConfig) -> tuple[float, list[float], list[float]]:
    """(loss, its gradient in the log-probs, and in the entropies)."""
    now, entropy = made["logprob"].detach().clone().requires_grad_(), made["entropy"].clone().requires_grad_()
    loss = 0.0 * (now.sum() + entropy.sum())
    for token in made["mask"].nonzero()[:, 0].tolist():
        gain = correction_of(token, made, config) * surrogate_of(token, now, made, config)
        loss = loss - made["weight"][token] * (gain - penalty_of(token, now, entropy, made, config)) / NORMALIZER
    loss.backward()
    return loss.item(), now.grad.tolist(), entropy.grad.tolist()


configs = st.builds(
    ObjectiveConfig,
    loss=st.sampled_from(["ppo", "gspo", "cispo", "clip_cov", "kl_cov", "archer"]),
    clip_low=st.sampled_from([0.0003, 0.2, 0.9]),
    clip_high=st.sampled_from([0.0004, 0.28, 3.0]),
    dual_clip=st.sampled_from([0.0, 1.5, 10.0]),
    entropy_coef=st.sampled_from([0.0, 0.3]),
    entropy_shaping=st.builds(EntropyShaping, alpha=st.sampled_from([0.0, 0.4]), kappa=st.sampled_from([1.5, 2.0])),
    kl_coef=st.sampled_from([0.0, 0.5]),
    kl_estimator=st.sampled_from(["k1", "k2", "k3"]),
    archer=st.builds(
        Archer, forking_clip_low=st.just(0.5), forking_clip_high=st.just(0.6), forking_kl=st.sampled_from([0.0, 0.3])
    ),
    cov_kl_coef=st.sampled_from([0.0, 1.0]),
    correction=st.sampled_from(["none", "tis", "icepop", "sequence"]),
    tis_cap=st.sampled_from([0.8, 2.0]),
)


@given(config=configs, seed=st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_equals_the_sum_over_tokens(config: ObjectiveConfig, seed: int) -> None:
    made = columns(seed)
    value, slopes, bonus = restated(made, config)
    made["logprob"].requires_grad_(), made["entropy"].requires_grad_()
    loss, _ = call(made, config)
    loss.backward()
    assert loss.item() == pytest.approx(value, rel=1e-11, abs=1e-12)
    assert made["logprob"].grad.tolist() == pytest.approx(slopes, rel=1e-10, abs=1e-14)
    found = made["entropy"].grad.tolist() if config.entropy_coef else [0.0] * TOKENS
    assert found == pytest.approx(bonus, rel=1e-11, abs=1e-14)


@given(config=configs, seed=st.integers(0, 10_000), parts=st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_parts_add_up_to_the_whole(config: ObjectiveConfig, seed: int, parts: int) -> None:
    made = columns(seed)
    made["logprob"].requires_grad_()
    generator = torch.Generator().manual_seed(seed + 1)
    if needs_whole_sequences(config):
        part_of = torch.randint(0, parts, (5,), generator=generator)[(made["sequence"] + 3) // 2**40]
    else:
        part_of = torch.randint(0, parts, (TOKENS,), generator=generator)
    whole, whole_metrics = call(made, config)
    (whole_gradient,) = torch.autograd.grad(whole, made["logprob"])
    losses, sums = [], defaultdict(float)
    for part in range(parts):
        share, metrics = call({name: column[part_of == part] for name, column in made.items()}, config)
        losses.append(share)
        for name, amount in metrics.items():
            assert not amount.requires_grad
            sums[name] += amount.item()
    (gradient,) = torch.autograd.grad(sum(losses), made["logprob"])
    assert sum(losses).item() == pytest.approx(whole.item(), rel=1e-11, abs=1e-12)
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-11, atol=1e-14)
    assert dict(sums) == pytest.approx({name: value.item() for name, value in whole_metrics.items()}, rel=1e-9)


@given(config=configs, seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_unmarked_tokens_enter_nothing(config: ObjectiveConfig, seed: int) -> None:
    made = columns(seed)
    clean, clean_metrics = call(made, config)
    for column in made.values():
        if column.is_floating_point():
            column[~made["mask"]] = math.nan
    for name in ("sequence", "forking", "covered", "accepted"):
        made[name] = torch.where(made["mask"], made[name], ~made[name])
    made["logprob"].requires_grad_()
    loss, metrics = call(made, config)
    loss.backward()
    assert loss.item() == clean.item() and metrics == clean_metrics
    assert made["logprob"].grad[~made["mask"]].abs().sum().item() == 0.0


def test_only_gspo_needs_whole_sequences() -> None:
    losses = ("ppo", "gspo", "cispo", "clip_cov", "kl_cov", "archer")
    assert [loss for loss in losses if needs_whole_sequences(ObjectiveConfig(loss=loss))] == ["gspo"]


def test_gspo_clips_whole_responses_at_the_papers_bounds() -> None:
    # Responses of 2, 1 and 1 tokens with geometric means e^2e-4, e^-5e-4 and e^-5e-4: the last two are below 1 - 3e-4.
    now = torch.tensor([3e-4, 1e-4, -5e-4, -5e-4], dtype=torch.float64).requires_grad_()
    advantage = torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    everything = torch.ones(4, dtype=torch.bool)
    config = ObjectiveConfig(loss="gspo", clip_low=3e-4, clip_high=4e-4)
    loss, metrics = policy_loss(
        now, torch.zeros(4), advantage, everything, config, normalizer=1.0, sequence=torch.tensor([4, 4, 1, 9])
    )
    loss.backward()
    kept, low = math.exp(2e-4), math.exp(-5e-4)
    assert loss.item() == pytest.approx(-(2 * kept + low - (1 - 3e-4)), rel=1e-12)
    assert now.grad.tolist() == pytest.approx([-kept, -kept, -low, 0.0], rel=1e-12)
    assert (metrics["clipped_low"].item(), metrics["clipped_high"].item()) == (1, 0)


def test_cispo_holds_its_weight_and_may_have_no_lower_bound() -> None:
    now = torch.tensor([4.0, 0.05], dtype=torch.float64).log().requires_grad_()
    both, everything = torch.tensor([2.0, -3.0], dtype=torch.float64), torch.ones(2, dtype=torch.bool)
    capped = ObjectiveConfig(loss="cispo", clip_low=1.0, clip_high=1.5)
    loss, metrics = policy_loss(now, torch.zeros(2), both, everything, capped, normalizer=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(-(2.5 * 2.0 * math.log(4.0) - 0.05 * 3.0 * math.log(0.05)), rel=1e-12)
    assert now.grad.tolist() == pytest.approx([-5.0, 0.15], rel=1e-12)
    assert (metrics["clipped_low"].item(), metrics["clipped_high"].item()) == (0, 1)
    bounded = ObjectiveConfig(loss="cispo", clip_low=0.2, clip_high=1.5)
    _, metrics = policy_loss(now, torch.zeros(2), both, everything, bounded, normalizer=1.0)
    assert (metrics["clipped_low"].item(), metrics["clipped_high"].item()) == (1, 1)


def test_kl_cov_does_not_clip_and_archer_clips_forking_tokens_later() -> None:
    now = torch.tensor([1.4, 1.4], dtype=torch.float64).log()
    flags = torch.tensor([True, False])
    shared = {"advantage": torch.ones(2), "mask": torch.ones(2, dtype=torch.bool), "normalizer": 1.0}
    loss, metrics = policy_loss(
        now, torch.zeros(2), config=ObjectiveConfig(loss="kl_cov", cov_kl_coef=2.0), covered=flags, **shared
    )
    assert loss.item() == pytest.approx(-(2.8 - 2.0 * math.log(1.4)), rel=1e-12)
    assert (metrics["clipped_high"].item(), metrics["covered"].item()) == (0, 1)
    loss, metrics = policy_loss(now, torch.zeros(2), config=ObjectiveConfig(loss="archer"), forking=flags, **shared)
    assert loss.item() == pytest.approx(-(1.4 + 1.28), rel=1e-12)
    assert metrics["clipped_high"].item() == 1


@pytest.mark.parametrize("loss", ["ppo", "gspo", "cispo", "clip_cov", "kl_cov", "archer"])
def test_on_policy_gradient_is_the_advantage(loss: str) -> None:
    made = columns(3)
    now = made["old_logprob"].clone().requires_grad_()
    nothing = torch.zeros(TOKENS, dtype=torch.bool)
    value, _ = policy_loss(
        now,
        made["old_logprob"],
        made["advantage"],
        made["mask"],
        ObjectiveConfig(loss=loss),
        normalizer=4.0,
        sequence=made["sequence"],
        forking=made["forking"],
        covered=nothing,
    )
    value.backward()
    torch.testing.assert_close(now.grad, torch.where(made["mask"], -made["advantage"] / 4.0, 0.0), rtol=1e-14, atol=0)


@pytest.mark.parametrize("loss", ["ppo", "gspo", "cispo", "clip_cov", "kl_cov", "archer"])
def test_infinite_ratios_and_no_tokens_give_numbers(loss: str) -> None:
    config = ObjectiveConfig(loss=loss, kl_coef=0.1, correction="tis")
    for tokens in (0, 2):
        now = torch.zeros(tokens, requires_grad=True)
        far, flags = torch.full((tokens,), -100.0), torch.ones(tokens, dtype=torch.bool)
        value, metrics = policy_loss(
            now,
            far,
            torch.tensor([1.0, -1.0])[:tokens],
            flags,
            config,
            normalizer=1.0,
            rollout_logprob=torch.zeros(tokens),
            reference_logprob=far,
            sequence=torch.arange(tokens),
            forking=flags,
            covered=flags,
        )
        value.backward()
        assert torch.isfinite(now.grad).all() and math.isfinite(value.item())
        assert all(math.isfinite(amount.item()) for amount in metrics.values())
        assert tokens or value.item() == 0.0
