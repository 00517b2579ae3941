"""What is written under a peer's name is what the peer measures: its definition, restated, gives the same number."""

import json
import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.commands import QUICKSTART, TINY, metrics_of, run

from megatron_fork.distributed import peak_flops
from megatron_fork.experience import Batch, Demonstration, Prompt, Trajectory, logprob_array, token_array
from megatron_fork.objective import ObjectiveConfig, policy_loss, rollout_mismatch
from megatron_fork.policy.network import Update
from megatron_fork.policy.update_metrics import of_mismatch, of_responses, of_update
from megatron_fork.run.folder import RunFolder
from megatron_fork.run.metric_names import ALIASES, Peer, PeerNames

BOTH = PeerNames(("verl", "nemo_rl"), ranks=4)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> float:
    return float((values * mask).sum() / mask.sum())


@given(
    seed=st.integers(0, 10_000),
    dual=st.sampled_from([1.5, 3.0]),
    low=st.sampled_from([0.1, 0.2]),
    correction=st.sampled_from(["none", "tis"]),
)
def test_verls_policy_loss_and_its_diagnostics(seed: int, dual: float, low: float, correction: str) -> None:
    """`compute_policy_loss` with clip ratios, dual clip and importance weights of the engine, over the tokens of its mask."""
    generator = torch.Generator().manual_seed(seed)
    old, new, rollout = (-torch.rand(3, 40, generator=generator, dtype=torch.float64) * 2).unbind()
    advantage = torch.randn(40, generator=generator, dtype=torch.float64)
    mask = torch.rand(40, generator=generator) < 0.6
    mask[0] = True
    config = ObjectiveConfig(
        clip_low=low, clip_high=0.28, dual_clip=dual, correction=correction, kl_coef=0.5, entropy_coef=0.3
    )
    _, sums = policy_loss(
        new, old, advantage, mask, config, normalizer=7.0, rollout_logprob=rollout, reference_logprob=old, entropy=-new
    )
    update = Update(loss=0.0, gradient_norm=0.0, learning_rate=0.0, sums={name: float(v) for name, v in sums.items()})
    found = BOTH.of("train", of_update(update))

    ratio = (new - old).exp()
    plain, bounded = -advantage * ratio, -advantage * ratio.clamp(1 - low, 1.28)
    upper = torch.maximum(plain, bounded)
    lower = -advantage * dual
    losses = torch.where(advantage < 0, torch.minimum(lower, upper), upper)
    if correction == "tis":
        losses = losses * (old - rollout).exp().clamp(max=config.tis_cap)
    assert found["actor/pg_loss"] == pytest.approx(masked_mean(losses, mask), rel=1e-10, abs=1e-12)
    assert found["actor/ppo_kl"] == pytest.approx(masked_mean(old - new, mask), rel=1e-10, abs=1e-12)
    assert found["actor/pg_clipfrac"] == pytest.approx(masked_mean((bounded > plain).double(), mask))
    taken = ((upper > lower) & (advantage < 0)).double()
    assert found["actor/pg_clipfrac_lower"] == pytest.approx(masked_mean(taken, mask))
    assert found["train/probs_ratio"] == pytest.approx(masked_mean(ratio, mask))


@given(pairs=st.lists(st.tuples(st.floats(-5, 0), st.floats(-5, 0)), min_size=1, max_size=30))
def test_nemo_rls_errors_of_the_engine(pairs: list[tuple[float, float]]) -> None:
    trainer, engine = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    found = BOTH.of("train", of_mismatch(rollout_mismatch(trainer, engine, ObjectiveConfig())))
    factors = [math.exp(abs(ours - theirs)) for ours, theirs in pairs]
    assert found["train/token_mult_prob_error"] == pytest.approx(math.fsum(factors) / len(pairs), rel=1e-12)
    estimates = [math.exp(ours - theirs) - 1 - (ours - theirs) for ours, theirs in pairs]
    assert found["train/gen_kl_error"] == pytest.approx(math.fsum(estimates) / len(pairs), rel=1e-9, abs=1e-14)


def response(number: int, prompt: int, length: int, reward: float, finish: str) -> Trajectory:
    tokens, logprobs = token_array([2] * length), logprob_array([-1.0] * length)
    return Trajectory(number, Prompt(0, "", (2,) * prompt, ""), tokens, logprobs, finish, 0, reward=reward)


@given(
    rows=st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 9), st.floats(-1, 1), st.sampled_from(["stop", "length"])),
        min_size=1,
        max_size=12,
    ),
    parts=st.integers(1, 4),
    seconds=st.floats(0.1, 100.0),
)
def test_responses_are_counted_however_they_are_split(rows: list, parts: int, seconds: float) -> None:
    responses = [response(number, *row) for number, row in enumerate(rows)]
    batches = [Batch.of_trajectories(responses[part::parts]) for part in range(parts)]
    found = BOTH.of("train", {**of_responses(batches), "time/step": seconds})
    assert found["critic/score/mean"] == pytest.approx(math.fsum(row[2] for row in rows) / len(rows))
    assert found["response_length/clip_ratio"] == sum(row[3] == "length" for row in rows) / len(rows)
    tokens = sum(prompt + length for prompt, length, _, _ in rows)
    assert found["perf/total_num_tokens"] == tokens
    assert found["perf/throughput"] == pytest.approx(tokens / seconds / 4)


def test_demonstrations_are_no_responses() -> None:
    assert of_responses([]) == of_responses([Batch([Demonstration(0, Prompt(0, "", (2,), ""), (3,))])]) == {}


def test_only_the_named_peers_only_of_training_and_only_what_is_there() -> None:
    metrics = {"time/step": 2.0, "gradient_norm": 0.5}
    assert PeerNames(("nemo_rl",)).of("train", metrics) == {"train/grad_norm": 0.5}
    expected = {"actor/grad_norm": 0.5, "timing_s/step": 2.0, "perf/time_per_step": 2.0}
    assert PeerNames(("verl",)).of("train", metrics) == expected
    assert PeerNames().of("train", metrics) == {} and PeerNames().all() == []
    assert BOTH.of("sft", metrics) == BOTH.of("evaluation", metrics) == {}


def test_every_peer_has_a_table_and_no_name_is_given_twice() -> None:
    assert set(ALIASES) == set(get_args(Peer))
    assert len(BOTH.all()) == len(set(BOTH.all())) == sum(map(len, ALIASES.values()))


def test_they_stand_beside_ours_in_the_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, writes=True, peer_names=PeerNames(("nemo_rl",)))
    folder.metrics("train", 1, {"gradient_norm": 0.5})
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert record == {"stage": "train", "step": 1, "gradient_norm": 0.5, "train/grad_norm": 0.5}


@pytest.mark.slow
def test_a_run_writes_every_one(tmp_path: Path) -> None:
    words = ("rollout.dynamic_sampling=false", "run.metric_aliases=[verl,nemo_rl]", f"run.folder={tmp_path / 'run'}")
    code, output = run("train", str(QUICKSTART), *TINY, "train.steps=1", *words)
    assert code == 0, output
    (step,) = metrics_of(tmp_path / "run", "train")
    # Where a GPU's peak is not known there is no utilization.
    expected = {name for name in BOTH.all() if "mfu" not in name or peak_flops() is not None}
    assert expected == step.keys() & set(BOTH.all())
    assert {name: step[name] for name in expected} == PeerNames(BOTH.peers, ranks=1).of("train", step)
    assert 1.0 <= step["train/token_mult_prob_error"] < 1.001
    assert step["critic/score/mean"] == pytest.approx(step["rollout/pass_rate"])  # no group is replaced here
