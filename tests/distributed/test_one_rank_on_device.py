"""One rank under the backend of the device that there is, NCCL on a GPU: collectives, updates, a checkpoint's way back."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.gpu import DEVICE
from support.layouts import model_config, trajectories

from megatron_fork import distributed, objective, selection
from megatron_fork.checkpoint import Checkpoints, load_training_state
from megatron_fork.clock import Clock
from megatron_fork.conversion import iter_hf_weights
from megatron_fork.distributed import collectives
from megatron_fork.policy import (
    Learner,
    LearningRates,
    OptimizerConfig,
    Policy,
    PolicyConfig,
    TrainedModels,
    split_into_mini_batches,
)
from megatron_fork.selection import kth_largest
from megatron_fork.vocab_parallel import lm_head_statistics

pytestmark = pytest.mark.gpu


def test_collectives_of_the_devices_backend() -> None:
    distributed.initialize()
    assert dist.get_backend() == ("nccl" if DEVICE == "cuda" else "gloo")
    assert distributed.device().type == DEVICE
    tensor, group = torch.arange(5.0, device=DEVICE), dist.group.WORLD
    for found in (collectives.all_reduce_sum(tensor, group), collectives.broadcast(tensor, 0, group)):
        assert torch.equal(found, torch.arange(5.0, device=DEVICE))
    assert collectives.gather_objects("word", group) == ["word"]


def test_what_works_on_a_group_works_on_one_of_one() -> None:
    distributed.initialize()
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(rows, 8, generator=generator).to(DEVICE) for rows in (30, 50))
    targets, group = torch.arange(30, device=DEVICE), dist.group.WORLD
    alone, grouped = (lm_head_statistics(hidden, weight, targets, group=each) for each in (None, group))
    torch.testing.assert_close(grouped.logprob, alone.logprob)
    assert kth_largest(alone.entropy, 6, group=group) == alone.entropy.sort(descending=True).values[5].item()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("sharded", [False, True])
def test_who_loads_a_checkpoint_goes_on_as_the_one_that_wrote_it(tmp_path: Path, precision: Any, sharded: bool) -> None:
    hf_config = model_config(tied=True, experts=False)
    batches = split_into_mini_batches(trajectories(), 2, group_size=4, seed=5)
    checkpoints = Checkpoints(tmp_path, write_model_files=hf_config.save_pretrained)
    distributed.initialize()

    def made(layout: distributed.Layout) -> Policy:
        adam = OptimizerConfig(learning_rate=1e-3, distributed=sharded)
        return Policy(PolicyConfig(precision, tokens_per_micro_batch=70), adam, hf_config, layout)

    def weights(policy: Policy) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in iter_hf_weights(policy.model)}

    def learn(policy: Policy, step: int) -> dict[str, torch.Tensor]:
        learner = Learner(
            TrainedModels(policy), selection.SelectionConfig(), objective.ObjectiveConfig(), mismatch_limit=100.0
        )
        learner.step(batches[step : step + 1], step=step, rates=LearningRates(1e-3), clock=Clock())
        return weights(policy)

    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        whole = made(layout)
        before, first = weights(whole), learn(whole, 0)
        assert all(torch.isfinite(tensor).all() for tensor in first.values())
        assert any(not torch.equal(first[name], before[name]) for name in first)
        checkpoints.save(1, {"policy": whole}, {"step": 1})
        checkpoints.wait()
        expected = learn(whole, 1)
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        again = made(layout)
        saved = checkpoints.latest()
        assert saved is not None
        load_training_state(saved, {"policy": again})
        for name, tensor in weights(again).items():
            assert torch.equal(tensor, first[name]), name
        moved = distance(first, expected)
        # Bit for bit on a CPU; on a GPU a gradient is summed in the order in which its parts come.
        assert moved > 0.0 and distance(learn(again, 1), expected) <= (0.02 * moved if DEVICE == "cuda" else 0.0)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum((one[name].double() - other[name].double()).square().sum().item() for name in other) ** 0.5
