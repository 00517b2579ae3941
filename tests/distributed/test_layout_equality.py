"""Layout invariance: from the same weights and rollouts, the first updates are the same on every layout.

Loss, threshold, selected tokens, gradient norm, and the parameters after two updates: one rank's to 1e-5 relative (float32).
"""

import random

import pytest
import torch
from ranks import run_on_ranks
from transformers import AutoModelForCausalLM, Qwen3Config

LAYOUTS = {
    "tensor": (2, {"tensor": 2}),
    "tensor and sequence": (2, {"tensor": 2, "sequence": True}),
    "pipeline": (2, {"pipeline": 2}),
    "data": (2, {}),
    "data on three ranks": (3, {}),
    "tensor x data": (4, {"tensor": 2}),
    "pipeline x data": (4, {"pipeline": 2}),
    "tensor, sequence x pipeline": (4, {"tensor": 2, "sequence": True, "pipeline": 2}),
}


def model_config(tied: bool) -> Qwen3Config:
    return Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=37,  # odd: tensor ranks hold padding
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )


def trajectories():
    """Six groups of four responses of 1 to 20 tokens, with engine log-probs near the truth of no model in particular."""
    from megatron_fork.experience import Prompt, Trajectory

    generator = random.Random(3)
    made = []
    for group in range(6):
        tokens = tuple(generator.randrange(37) for _ in range(generator.randint(2, 7)))
        for _ in range(4):
            length = generator.randint(1, 20)
            made.append(
                Trajectory(
                    number=len(made),
                    prompt=Prompt(group, "", tokens, ""),
                    response=tuple(generator.randrange(37) for _ in range(length)),
                    rollout_logprob=tuple(-generator.random() * 5 for _ in range(length)),
                    finish_reason="stop",
                    weight_version=0,
                    advantage=generator.uniform(-2, 2),
                )
            )
    return made


def two_updates(parallel: dict, tied: bool, distributed_optimizer: bool, denominator: str) -> dict:
    from megatron_fork import objective, selection
    from megatron_fork.checkpoint import iter_hf_weights, load_weights
    from megatron_fork.clock import Clock
    from megatron_fork.distributed import Config, collectives, parallel_layout
    from megatron_fork.policy import Config as PolicyConfig
    from megatron_fork.policy import Learner, Networks, OptimizerConfig, Policy, Rates, split_into_mini_batches

    config = model_config(tied)
    torch.manual_seed(11)
    weights = AutoModelForCausalLM.from_config(config).state_dict()
    with parallel_layout(Config(**parallel)) as layout:
        policy = Policy(
            PolicyConfig(tokens_per_micro_batch=70, tokens_per_statistics_batch=90),
            OptimizerConfig(learning_rate=1e-3, distributed=distributed_optimizer),
            config,
            layout,
            temperature=0.8,
        )
        load_weights(policy.model, weights)
        policy.weights_changed()
        learner = Learner(
            Networks(policy), selection.Config(), objective.Config(denominator=denominator), mismatch_limit=100.0
        )
        batches = split_into_mini_batches(trajectories(), 3, group_size=4, seed=5)
        first = learner.learn(batches[:1], step=1, rates=Rates(1e-3), clock=Clock())
        second = learner.learn(batches[1:], step=2, rates=Rates(1e-3), clock=Clock())
        chosen = [share.token_id_t[share.selected_t].tolist() for lesson in (first, second) for share in lesson.shares]
        everyone = collectives.gather_objects(chosen, layout.data)
        return {
            "metrics": [
                {
                    name: lesson.metrics[name]
                    for name in ("loss", "gradient_norm", "selection/threshold", "selection/selected", "entropy/mean")
                }
                for lesson in (first, second)
            ],
            "selected": [sorted(token for part in parts for token in part) for parts in zip(*everyone, strict=True)],
            "weights": {name: tensor.clone() for name, tensor in iter_hf_weights(policy.model)},
        }


@pytest.fixture(scope="module")
def references() -> dict:
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_updates_equal_one_rank(name: str, references: dict) -> None:
    ranks, parallel = LAYOUTS[name]
    # Each layout takes one variant of the rest, so that all are covered over the list.
    index = list(LAYOUTS).index(name)
    variant = (index % 2 == 0, "data" in name, ("selected", "all")[index // 2 % 2])
    if variant not in references:
        references[variant] = run_on_ranks(two_updates, 1, {}, variant[0], False, variant[2])[0]
    reference = references[variant]
    for result in run_on_ranks(two_updates, ranks, parallel, *variant):
        assert result["selected"] == reference["selected"]
        for ours, theirs in zip(result["metrics"], reference["metrics"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
        for key, tensor in reference["weights"].items():
            # By norm, as Adam divides by the gradient's size: where that is rounding noise, so is the sign of the step.
            difference = (result["weights"][key] - tensor).norm()
            assert difference <= 1e-5 * tensor.norm(), f"{key} differs by {difference:.2e}"
