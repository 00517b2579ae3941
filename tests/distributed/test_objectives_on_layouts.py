"""Every named objective gives the same updates on every layout: losses, norms, metrics and weights, 1e-5 relative (float32).

Three updates a rollout batch, so that ratios leave 1 and clips, penalties and corrections bite. A run takes half of the pairs,
all with EVERY_LAYOUT=1.
"""

import os

import pytest
import torch
from layouts import model_config, trajectories
from ranks import run_on_ranks
from transformers import AutoModelForCausalLM

OBJECTIVES: dict[str, dict] = {
    "ppo with a critic": {"advantage": "gae", "clip_high": 0.2},
    "gspo": {"loss": "gspo", "average": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {"loss": "cispo", "clip_low": 1.0, "denominator": "all"},
    "clip_cov": {"loss": "clip_cov", "cov_share": 0.1, "cov_low": 0.01, "cov_high": 50.0},
    "kl_cov": {"loss": "kl_cov", "cov_share": 0.1},
    "archer": {"loss": "archer", "kl_coef": 0.01},
    "dr_grpo": {"average": "constant", "constant_length": 20, "correction": "tis"},
    "regularised": {"kl_coef": 0.1, "kl_estimator": "k2", "entropy_coef": 0.01, "correction": "icepop"},
    "shaped": {"entropy_shaping": {"alpha": 0.4}, "correction": "sequence", "sequence_low": 0.0, "sequence_high": 9.0},
}
LAYOUTS = {
    "tensor x data": (4, {"tensor": 2}),
    "tensor, sequence x pipeline": (4, {"tensor": 2, "sequence": True, "pipeline": 2}),
    "data on three ranks": (3, {}),
    "context": (2, {"context": 2}),
}


def results(parallel: dict, names: list[str]) -> dict:
    from megatron_fork import objective, selection
    from megatron_fork.clock import Clock
    from megatron_fork.conversion import iter_hf_weights, load_weights
    from megatron_fork.distributed import ParallelConfig, parallel_layout
    from megatron_fork.policy import (
        Critic,
        Learner,
        LearningRates,
        OptimizerConfig,
        Policy,
        PolicyConfig,
        TrainedModels,
        split_into_mini_batches,
    )

    hf_config = model_config(tied=False, experts=False)
    torch.manual_seed(11)
    weights = AutoModelForCausalLM.from_config(hf_config).state_dict()
    found = {}
    with parallel_layout(ParallelConfig(**parallel)) as layout:
        config = PolicyConfig(tokens_per_micro_batch=70, tokens_per_statistics_batch=90)
        adam = OptimizerConfig(learning_rate=1e-3)
        for name in names:
            options = dict(OBJECTIVES[name])
            if "entropy_shaping" in options:
                options["entropy_shaping"] = objective.EntropyShaping(**options["entropy_shaping"])
            goal = objective.ObjectiveConfig(**options)
            policy = Policy(config, adam, hf_config, layout, temperature=0.8)
            critic = Critic(config, adam, hf_config, layout) if goal.advantage == "gae" else None
            reference = Policy(config, None, hf_config, layout, temperature=0.8) if goal.kl_coef else None
            for network in (policy, critic, reference):
                if network is not None:
                    load_weights(network.model, weights)
            policy.weights_changed()
            if critic is not None:
                critic.weights_changed()
            networks = TrainedModels(policy, critic, reference)
            learner = Learner(
                networks, selection.SelectionConfig(ratio=0.5), goal, mismatch_limit=100.0, critic_epochs=2
            )
            batches = split_into_mini_batches(trajectories(), 2, group_size=4, seed=5)
            metrics = [
                learner.step(batches, step=step, rates=LearningRates(1e-3, 1e-3), clock=Clock()).metrics
                for step in (1, 2)
            ]
            found[name] = (metrics, {key: tensor.clone() for key, tensor in iter_hf_weights(policy.model)})
    return found


@pytest.fixture(scope="module")
def reference() -> dict:
    return run_on_ranks(results, 1, {}, list(OBJECTIVES))[0]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_updates_equal_one_rank(layout: str, reference: dict) -> None:
    ranks, parallel = LAYOUTS[layout]
    names = list(OBJECTIVES)
    if not os.environ.get("EVERY_LAYOUT"):  # every second one, so that each objective meets two layouts
        names = names[list(LAYOUTS).index(layout) % 2 :: 2]
    # Sequence and pipeline touch what is inside the networks, the others also what is summed over ranks.
    for result in run_on_ranks(results, ranks, parallel, names)[:2]:
        assert list(result) == names
        for name, (metrics, weights) in result.items():
            for ours, theirs in zip(metrics, reference[name][0], strict=True):
                assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6, nan_ok=True), name
            for key, tensor in reference[name][1].items():
                difference = (weights[key] - tensor).norm()
                assert difference <= 2e-5 * tensor.norm(), f"{name}: {key} differs by {difference:.2e}"


@pytest.mark.slow
def test_every_objective_does_what_its_name_says(reference: dict) -> None:
    """The metrics that show that each bound, penalty and critic took part; else equality would prove nothing."""
    last = {name: metrics[-1] for name, (metrics, _) in reference.items()}
    assert last["ppo with a critic"]["critic/loss"] > 0.0
    first_loss = reference["ppo with a critic"][0][0]["critic/loss"]
    assert last["ppo with a critic"]["critic/loss"] < first_loss
    assert last["gspo"]["objective/clipped_high"] + last["gspo"]["objective/clipped_low"] > 0.0
    assert last["cispo"]["objective/clipped_low"] == 0.0  # no lower bound
    for name in ("clip_cov", "kl_cov"):
        assert 0.0 < last[name]["objective/covered"] <= 0.2, name
    assert last["archer"]["objective/kl"] > 0.0 and last["regularised"]["objective/kl"] > 0.0
    # Archer trains every candidate, the others those that were selected.
    assert last["dr_grpo"]["objective/correction_clipped"] > 0.0
    assert last["regularised"]["objective/correction_clipped"] > 0.0
    weights = {
        name: torch.cat([tensor.flatten() for tensor in found.values()]) for name, (_, found) in reference.items()
    }
    names = list(weights)
    assert all(
        not torch.equal(weights[one], weights[other]) for place, one in enumerate(names) for other in names[:place]
    )
