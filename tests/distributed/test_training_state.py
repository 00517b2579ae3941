"""A checkpoint of any layout holds all that training needs: who loads it goes on as the one that wrote it, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import legal, model_config, trajectories
from ranks import run_on_ranks
from transformers import AutoModelForCausalLM

# The layout, whether the model has experts, and whether the optimizer is distributed.
LAYOUTS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "interleaved pipeline": ({"pipeline": 2, "virtual_pipeline": 2}, False, False),
    "context": ({"context": 2}, False, True),
    "experts": ({"expert": 2}, True, True),
    "tensor and sequence, experts": ({"tensor": 2, "sequence": True, "expert_tensor": 2}, True, False),
}


def went_on(folder: str, names: list[str]) -> dict[str, tuple[bool, list[str]]]:
    """For each layout: whether the weights moved after the checkpoint, and those that differ between the two runs."""
    return {name: _went_on(Path(folder, name), *LAYOUTS[name]) for name in names}


def _went_on(folder: Path, parallel: dict[str, Any], experts: bool, distributed: bool) -> tuple[bool, list[str]]:
    from megatron_fork import objective, selection
    from megatron_fork.checkpoint import (
        Checkpoints,
        iter_hf_weights,
        load_training_state,
        load_weights,
    )
    from megatron_fork.clock import Clock
    from megatron_fork.distributed import Config, Layout, parallel_layout
    from megatron_fork.policy import Config as PolicyConfig
    from megatron_fork.policy import Learner, Networks, OptimizerConfig, Policy, Rates, split_into_mini_batches

    hf_config = model_config(tied=True, experts=experts)
    batches = split_into_mini_batches(trajectories(), 2, group_size=4, seed=5)

    def made(layout: Layout) -> Policy:
        adam = OptimizerConfig(learning_rate=1e-3, distributed=distributed)
        return Policy(PolicyConfig(tokens_per_micro_batch=70), adam, hf_config, layout)

    def learn(policy: Policy, step: int) -> dict[str, torch.Tensor]:
        learner = Learner(Networks(policy), selection.Config(), objective.Config(), mismatch_limit=100.0)
        learner.learn(batches[step : step + 1], step=step, rates=Rates(1e-3), clock=Clock())
        return {name: tensor.clone() for name, tensor in iter_hf_weights(policy.model)}

    with parallel_layout(Config(**parallel)) as layout:
        whole = made(layout)
        torch.manual_seed(11)
        load_weights(whole.model, AutoModelForCausalLM.from_config(hf_config).state_dict())
        whole.weights_changed()
        first = learn(whole, 0)
        checkpoints = Checkpoints(folder)
        checkpoints.save(1, {"policy": whole}, {"step": 1})
        expected = learn(whole, 1)
        resumed = made(layout)
        checkpoints.wait()
        saved = checkpoints.latest()
        assert saved is not None
        load_training_state(saved, {"policy": resumed})
        found = learn(resumed, 1)
        moved = any(not torch.equal(first[name], tensor) for name, tensor in expected.items())
        return moved, [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]


@pytest.mark.slow
def test_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    for parallel, experts, _ in LAYOUTS.values():
        assert any(parallel.items() <= each.items() for each in legal(2, experts=experts))
    for results in run_on_ranks(went_on, 2, str(tmp_path), list(LAYOUTS), time_limit=300.0, have_children=True):
        for name, (moved, different) in results.items():
            assert moved, name
            assert different == [], name
