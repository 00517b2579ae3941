"""The policy loss and its gradients equal a token-by-token float64 restatement, and parts of a mini-batch add up to it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.errors import ObjectiveError
from megatron_fork.objective import EntropyShaping, ObjectiveConfig, policy_loss, supervised_loss

SUMS = ("tokens", "ratio", "k1", "k3", "clipped_high", "clipped_low", "dual_clipped", "surrogate")


def token_terms(
    now: float, old: float, rollout: float, advantage: float, config: ObjectiveConfig
) -> tuple[float, float, dict]:
    """(loss, d loss / d logprob, metrics) of one marked token without entropy bonus, before division."""
    ratio = math.exp(now - old)
    low, high = 1 - config.clip_low, 1 + config.clip_high
    if advantage >= 0:
        clipped = ratio > high
        value, slope = (high * advantage, 0.0) if clipped else (ratio * advantage, ratio * advantage)
    else:
        clipped = ratio < low
        value, slope = (low * advantage, 0.0) if clipped else (ratio * advantage, ratio * advantage)
    dual = bool(config.dual_clip) and advantage < 0 and ratio > config.dual_clip
    if dual:
        value, slope = config.dual_clip * advantage, 0.0
    weight, changed = 1.0, False
    if config.correction != "none":
        weight = math.exp(old - rollout)
        if config.correction == "tis":
            changed, weight = weight > config.tis_cap, min(weight, config.tis_cap)
        elif not config.icepop_low <= weight <= config.icepop_high:
            changed, weight = True, 0.0
    metrics = {
        "tokens": 1,
        "ratio": ratio,
        "k1": old - now,
        "k3": ratio - 1 - (now - old),
        "clipped_high": clipped and advantage > 0,
        "clipped_low": clipped and advantage < 0,
        "dual_clipped": dual,
        "surrogate": value * weight,
    }
    if config.correction != "none":
        metrics |= {"correction_weight": weight, "correction_clipped": changed}
    return -value * weight, -slope * weight, metrics


configs = st.builds(
    ObjectiveConfig,
    clip_low=st.sampled_from([0.0, 0.1, 0.2, 0.9]),
    clip_high=st.sampled_from([0.0, 0.28, 3.0]),
    dual_clip=st.sampled_from([0.0, 1.5, 3.0, 10.0]),
    entropy_coef=st.sampled_from([0.0, 0.01, 2.0]),
    correction=st.sampled_from(["none", "tis", "icepop"]),
    tis_cap=st.sampled_from([0.8, 2.0]),
    icepop_low=st.sampled_from([0.0, 0.5]),
    icepop_high=st.sampled_from([1.1, 2.0]),
)


def columns(seed: int, tokens: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> torch.Tensor:
        return torch.randn(tokens, generator=generator, dtype=torch.float64) * scale

    old = -normal(2.0).abs()
    return {
        "logprob": old + normal(0.9),
        "old_logprob": old,
        "rollout_logprob": old + normal(0.6),
        "advantage": normal(1.5) * (torch.rand(tokens, generator=generator) < 0.9),
        "entropy": normal(1.0).abs(),
        "mask": torch.rand(tokens, generator=generator) < 0.6,
    }


def call(made: dict[str, torch.Tensor], config: ObjectiveConfig, normalizer: float):
    return policy_loss(
        made["logprob"],
        made["old_logprob"],
        made["advantage"],
        made["mask"],
        config,
        normalizer=normalizer,
        entropy=made["entropy"],
        rollout_logprob=made["rollout_logprob"],
    )


@given(config=configs, seed=st.integers(0, 10_000), tokens=st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_equals_the_sum_over_tokens(config: ObjectiveConfig, seed: int, tokens: int) -> None:
    made = columns(seed, tokens)
    logprob, entropy = made["logprob"].requires_grad_(), made["entropy"].requires_grad_()
    loss, metrics = call(made, config, normalizer=7.5)
    loss.backward()
    value, slopes, bonus = 0.0, [0.0] * tokens, [0.0] * tokens
    sums: dict[str, float] = {}
    for token in made["mask"].nonzero()[:, 0].tolist():
        now, old, rollout, advantage = (
            made[name][token].item() for name in ("logprob", "old_logprob", "rollout_logprob", "advantage")
        )
        term, slope, token_metrics = token_terms(now, old, rollout, advantage, config)
        value += term - config.entropy_coef * entropy[token].item()
        slopes[token] = slope / 7.5
        bonus[token] = -config.entropy_coef / 7.5
        sums = {name: sums.get(name, 0.0) + amount for name, amount in token_metrics.items()}
    assert loss.item() == pytest.approx(value / 7.5, rel=1e-12, abs=1e-12)
    assert logprob.grad.tolist() == pytest.approx(slopes, rel=1e-12, abs=1e-15)
    if config.entropy_coef:
        assert entropy.grad.tolist() == pytest.approx(bonus, rel=1e-12)
    else:
        assert entropy.grad is None
    corrected = () if config.correction == "none" else ("correction_weight", "correction_clipped")
    assert set(metrics) == {*SUMS, *corrected}
    for name in (*SUMS, *corrected):
        assert metrics[name].item() == pytest.approx(sums.get(name, 0.0), rel=1e-9, abs=1e-9)
        assert not metrics[name].requires_grad


@given(config=configs, seed=st.integers(0, 10_000), parts=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_parts_add_up_to_the_whole(config: ObjectiveConfig, seed: int, parts: int) -> None:
    made = columns(seed, 33)
    generator = torch.Generator().manual_seed(seed + 1)
    part_of = torch.randint(0, parts, (33,), generator=generator)
    made["logprob"].requires_grad_()
    whole, whole_metrics = call(made, config, normalizer=20.0)
    (whole_gradient,) = torch.autograd.grad(whole, made["logprob"])
    losses, sums = [], dict.fromkeys(whole_metrics, 0.0)
    for part in range(parts):
        share, metrics = call({name: column[part_of == part] for name, column in made.items()}, config, normalizer=20.0)
        losses.append(share)
        sums = {name: total + metrics[name].item() for name, total in sums.items()}
    (gradient,) = torch.autograd.grad(sum(losses), made["logprob"])
    assert sum(losses).item() == pytest.approx(whole.item(), rel=1e-12, abs=1e-12)
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-12, atol=1e-15)
    assert sums == pytest.approx({name: value.item() for name, value in whole_metrics.items()}, rel=1e-9, abs=1e-9)


def test_example_of_each_clip() -> None:
    # Ratios 2, 2, 1/2, 1/2 and 20, with the default clips [0.8, 1.28] and dual clip 10.
    logprob = torch.tensor([2.0, 2.0, 0.5, 0.5, 20.0], dtype=torch.float64).log().requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    everything = torch.ones(5, dtype=torch.bool)
    loss, metrics = policy_loss(
        logprob, torch.zeros_like(logprob), advantage, everything, ObjectiveConfig(), normalizer=1.0
    )
    loss.backward()
    assert loss.item() == pytest.approx(-(1.28 - 2.0 + 0.5 - 0.8 - 10.0), rel=1e-12)
    assert logprob.grad.tolist() == pytest.approx([0.0, 2.0, -0.5, 0.0, 0.0], rel=1e-12)
    assert {name: metrics[name].item() for name in ("clipped_high", "clipped_low", "dual_clipped")} == {
        "clipped_high": 1,
        "clipped_low": 1,
        "dual_clipped": 1,
    }


def test_on_policy_gradient_is_the_advantage() -> None:
    made = columns(3, 50)
    logprob = made["old_logprob"].clone().requires_grad_()
    loss, _ = policy_loss(
        logprob, made["old_logprob"], made["advantage"], made["mask"], ObjectiveConfig(), normalizer=4.0
    )
    loss.backward()
    expected = torch.where(made["mask"], -made["advantage"] / 4.0, 0.0)
    torch.testing.assert_close(logprob.grad, expected, rtol=1e-14, atol=0.0)


def test_unmarked_tokens_enter_nothing() -> None:
    made = columns(1, 20)
    clean = call(made, ObjectiveConfig(correction="tis", entropy_coef=0.1), normalizer=3.0).loss
    for name, column in made.items():
        if name != "mask":
            column[~made["mask"]] = math.nan
    made["logprob"].requires_grad_()
    loss = call(made, ObjectiveConfig(correction="tis", entropy_coef=0.1), normalizer=3.0).loss
    loss.backward()
    assert loss.item() == clean.item()
    assert made["logprob"].grad[~made["mask"]].tolist() == [0.0] * int((~made["mask"]).sum())


def test_nothing_marked_gives_a_loss_of_zero_that_can_be_differentiated() -> None:
    made = columns(1, 5)
    made["mask"][:] = False
    made["logprob"].requires_grad_()
    loss, metrics = call(made, ObjectiveConfig(), normalizer=3.0)
    loss.backward()
    assert loss.item() == 0.0
    assert made["logprob"].grad.tolist() == [0.0] * 5
    assert all(value.item() == 0.0 for value in metrics.values())


@pytest.mark.parametrize("name", ["old_logprob", "advantage", "mask", "entropy", "rollout_logprob"])
def test_wrong_shape_is_named(name: str) -> None:
    made = columns(0, 4)
    made[name] = made[name][:3]
    with pytest.raises(ObjectiveError, match=rf"{name} has shape \[3\], logprob \[4\]"):
        call(made, ObjectiveConfig(), normalizer=1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_advantage_that_is_not_finite_is_refused(value: float) -> None:
    made = columns(0, 4)
    made["mask"][:] = True
    made["advantage"][2] = value
    with pytest.raises(ObjectiveError, match="advantage holds a value that is not finite"):
        call(made, ObjectiveConfig(), normalizer=1.0)


@pytest.mark.parametrize(
    ("config", "missing", "field"),
    [
        (ObjectiveConfig(entropy_coef=0.1), "entropy", "entropy_coef"),
        (ObjectiveConfig(correction="tis"), "rollout_logprob", "correction"),
        (ObjectiveConfig(correction="icepop"), "rollout_logprob", "correction"),
        (ObjectiveConfig(correction="sequence"), "accepted", "correction"),
        (ObjectiveConfig(entropy_shaping=EntropyShaping(alpha=0.4)), "entropy", "entropy_shaping"),
        (ObjectiveConfig(kl_coef=0.1), "reference_logprob", "kl_coef"),
        (ObjectiveConfig(loss="gspo"), "sequence", "loss"),
        (ObjectiveConfig(loss="clip_cov"), "covered", "loss"),
        (ObjectiveConfig(loss="kl_cov"), "covered", "loss"),
        (ObjectiveConfig(loss="archer"), "forking", "loss"),
    ],
)
def test_missing_column_is_named(config: ObjectiveConfig, missing: str, field: str) -> None:
    made = columns(0, 4)
    with pytest.raises(ObjectiveError, match=f"objective.{field} needs {missing}"):
        policy_loss(made["logprob"], made["old_logprob"], made["advantage"], made["mask"], config, normalizer=1.0)


@pytest.mark.parametrize("name", ["mask", "forking", "covered", "accepted"])
def test_numbers_for_flags_are_refused(name: str) -> None:
    numbers = torch.ones(4, dtype=torch.long)
    flags = {"mask": torch.ones(4, dtype=torch.bool), name: numbers}
    with pytest.raises(ObjectiveError, match=f"{name} is torch.int64, not bool"):
        policy_loss(torch.zeros(4), torch.zeros(4), torch.zeros(4), config=ObjectiveConfig(), normalizer=1.0, **flags)


@pytest.mark.parametrize("normalizer", [0.0, -1.0, math.nan])
def test_normalizer_that_cannot_divide_is_refused(normalizer: float) -> None:
    with pytest.raises(ObjectiveError, match=f"normalizer={normalizer}"):
        call(columns(0, 4), ObjectiveConfig(), normalizer=normalizer)


def test_a_clipped_token_has_no_gradient_however_far_its_ratio() -> None:
    logprob = torch.tensor([0.0, 0.0], requires_grad=True)
    old = torch.tensor([-100.0, -100.0])  # the ratio is infinite in float32
    loss, _ = policy_loss(
        logprob, old, torch.tensor([1.0, -1.0]), torch.ones(2, dtype=torch.bool), ObjectiveConfig(), normalizer=1.0
    )
    loss.backward()
    assert loss.item() == pytest.approx(-1.28 + 10.0, rel=1e-6)
    assert logprob.grad.tolist() == [0.0, 0.0]


def test_supervised_loss_is_the_mean_surprise() -> None:
    logprob = torch.tensor([-1.0, -3.0, -0.5], requires_grad=True)
    loss, metrics = supervised_loss(logprob, normalizer=6.0)
    loss.backward()
    assert loss.item() == 0.75
    assert logprob.grad.tolist() == pytest.approx([-1 / 6] * 3, rel=1e-6)
    assert metrics == {}
