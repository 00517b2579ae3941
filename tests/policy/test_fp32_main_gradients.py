"""With bfloat16 weights, gradients are summed in float32 over micro-batches, and updates too small for a weight add up."""

import pytest
import torch
from support.layouts import model_config, trajectories
from support.ranks import run_on_ranks

UPDATES = 24
RATE = 1e-5  # of a weight of 0.3, whose neighbours in bfloat16 are 2e-3 away


def gradients(tokens_per_micro_batch: int) -> tuple[int, dict[str, torch.Tensor], set[torch.dtype]]:
    """How many micro-batches, the main gradients of a backward pass by name, and the dtypes of the buffers."""
    from megatron_fork import objective, selection
    from megatron_fork.clock import Clock
    from megatron_fork.distributed import ParallelConfig, parallel_layout
    from megatron_fork.policy import (
        Learner,
        LearningRates,
        OptimizerConfig,
        Policy,
        PolicyConfig,
        TrainedModels,
        split_into_mini_batches,
    )

    torch.manual_seed(0)
    with parallel_layout(ParallelConfig()) as layout:
        config = PolicyConfig(precision="bf16", tokens_per_micro_batch=tokens_per_micro_batch)
        hf_config = model_config(tied=False, experts=False)
        policy = Policy(config, OptimizerConfig(clip_gradient=0.0), hf_config, layout)
        goal = objective.ObjectiveConfig()
        learner = Learner(TrainedModels(policy), selection.SelectionConfig(), goal, mismatch_limit=100.0)
        batches = split_into_mini_batches(trajectories(), 6, group_size=4, seed=5)
        count = len(policy.micro_batches(policy.share(batches[0])))
        learner.step(batches, step=1, rates=LearningRates(1e-6), clock=Clock())
        found = {name: parameter.main_grad.clone() for name, parameter in policy.model[0].named_parameters()}
        return count, found, {buffer.dtype for buffer in policy.gradient_buffers}


def main_weights(rate: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight before and after updates that are each less than half the way to its neighbour; and its main parameter after."""
    from megatron_fork import objective, selection
    from megatron_fork.clock import Clock
    from megatron_fork.distributed import ParallelConfig, parallel_layout
    from megatron_fork.policy import (
        Learner,
        LearningRates,
        OptimizerConfig,
        Policy,
        PolicyConfig,
        TrainedModels,
        split_into_mini_batches,
    )

    torch.manual_seed(0)
    with parallel_layout(ParallelConfig()) as layout:
        adam = OptimizerConfig(learning_rate=rate, weight_decay=0.0)
        policy = Policy(PolicyConfig(precision="bf16"), adam, model_config(tied=False, experts=False), layout)
        goal = objective.ObjectiveConfig()
        learner = Learner(TrainedModels(policy), selection.SelectionConfig(), goal, mismatch_limit=100.0)
        (batch,) = split_into_mini_batches(trajectories(), 6, group_size=4, seed=5)
        weight = policy.model[0].get_parameter("decoder.layers.0.mlp.linear_fc2.weight")
        before = weight.detach().clone()
        for step in range(UPDATES):
            learner.step([batch], step=step, rates=LearningRates(rate), clock=Clock())
        return before, weight.detach().clone(), weight.main_param.detach().view_as(weight).clone()


@pytest.mark.slow
def test_many_micro_batches_give_the_gradient_of_few() -> None:
    (few, whole, dtypes), (many, parts, _) = (run_on_ranks(gradients, 1, tokens)[0] for tokens in (10_000, 1))
    assert few == 1 and many == 24 and dtypes == {torch.float32}
    for name, gradient in whole.items():
        assert gradient.dtype == torch.float32
        # Weight gradients are products in bfloat16 before they are added; what is added is not rounded again.
        apart = float((parts[name] - gradient).norm() / gradient.norm().clamp(min=1e-30))
        assert apart < 0.06, (name, apart)


@pytest.mark.slow
def test_updates_below_a_weights_last_bit_add_up() -> None:
    before, after, main = run_on_ranks(main_weights, 1, RATE)[0]
    assert torch.equal(after, main.bfloat16()), "the weight is its main parameter, rounded"
    moved = (main - before.float()).abs()
    largest = RATE * UPDATES
    assert 0.2 * largest < float(moved.median()) <= 1.1 * largest
    big = before.float().abs() > 0.3
    steps = torch.nextafter(before, torch.full_like(before, torch.inf)).float() - before.float()
    assert float((after == before)[big & (steps.abs() > 4 * largest)].float().mean()) > 0.5, "some have not moved yet"
    assert bool((after != before).any()), "and some have, which no single update could move"
