"""An optimizer in host memory makes the updates that one on the GPU makes, from the weights that were loaded, and resumes.

On a GPU it is the real one. On a CPU every parameter counts as one of the GPU, with a copy in "host memory": the two memories
are one, while what is copied from where to where stays Megatron's.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.layouts import model_config, trajectories
from support.ranks import run_on_ranks
from transformers import AutoModelForCausalLM

from megatron_fork.distributed import versions
from megatron_fork.errors import ConfigError
from megatron_fork.policy import OptimizerConfig

UPDATES = 3


def all_on_the_gpu(self: Any, _fraction: float) -> tuple[Any, ...]:
    """Megatron's division of the parameters, with all of them offloaded, where no tensor says that it is on a GPU."""
    groups, copy_of, original_of, float32_of = [], {}, {}, {}
    for group in self.param_groups:
        copies = []
        for parameter in group["params"]:
            copy = parameter.detach().clone()
            if self.param_update_in_fp32 and copy.dtype != torch.float32:
                copy = float32_of[parameter] = copy.float()
            copy_of[parameter], original_of[copy] = copy, parameter
            copies.append(copy)
        groups.append({**group, "params": copies})
    return groups, [], copy_of, original_of, float32_of


def trained(folder: str, offload: float) -> dict[str, Any]:
    """Weights after each of some updates, and those that another policy has after the last, resumed before it."""
    from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer

    from megatron_fork import objective, selection
    from megatron_fork.checkpoint import Checkpoints, load_training_state
    from megatron_fork.clock import Clock
    from megatron_fork.conversion import iter_hf_weights, load_weights
    from megatron_fork.distributed import ParallelConfig, parallel_layout
    from megatron_fork.policy import (
        Learner,
        LearningRates,
        Policy,
        PolicyConfig,
        TrainedModels,
        split_into_mini_batches,
        wrapping,
    )

    if not torch.cuda.is_available():
        HybridDeviceOptimizer._get_sub_optimizer_param_groups = all_on_the_gpu
        wrapping.has_gpu = lambda: True
    hf_config = model_config(tied=False, experts=False)
    torch.manual_seed(11)
    weights = AutoModelForCausalLM.from_config(hf_config).state_dict()
    batches = split_into_mini_batches(trajectories(), 6 // UPDATES, group_size=4, seed=5)
    checkpoints = Checkpoints(Path(folder), write_model_files=hf_config.save_pretrained)
    with parallel_layout(ParallelConfig()) as layout:

        def made() -> Policy:
            adam = OptimizerConfig(learning_rate=1e-3, distributed=True, offload=offload)
            return Policy(PolicyConfig(precision="bf16"), adam, hf_config, layout)

        def learn(policy: Policy, step: int) -> dict[str, torch.Tensor]:
            goal = objective.ObjectiveConfig()
            learner = Learner(TrainedModels(policy), selection.SelectionConfig(), goal, mismatch_limit=100.0)
            result = learner.step(batches[step : step + 1], step=step, rates=LearningRates(1e-3), clock=Clock())
            return {
                "norm": torch.tensor(result.metrics["gradient_norm"]),
                **{name: tensor.float().clone() for name, tensor in iter_hf_weights(policy.model)},
            }

        policy = made()
        load_weights(policy.model, weights)
        policy.weights_changed()
        steps = [learn(policy, step) for step in range(UPDATES - 1)]
        checkpoints.save(1, {"policy": policy}, {"step": 1})
        checkpoints.wait()
        steps.append(learn(policy, UPDATES - 1))
        saved = checkpoints.latest()
        assert saved is not None
        resumed = made()
        load_training_state(saved, {"policy": resumed})
        return {"steps": steps, "resumed": learn(resumed, UPDATES - 1), "loaded": weights}


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(
    not versions.can_offload_optimizer(), reason="this megatron-core offloads with Transformer Engine only"
)
def test_in_host_memory_as_on_the_gpu(tmp_path: Path) -> None:
    kept, moved = (
        run_on_ranks(trained, 1, str(tmp_path / str(offload)), offload, have_children=True)[0] for offload in (0.0, 1.0)
    )
    for ours, theirs in zip(moved["steps"], kept["steps"], strict=True):
        for name, tensor in theirs.items():
            assert torch.allclose(ours[name], tensor, rtol=1e-2, atol=1e-3), name
    for name, tensor in moved["steps"][-1].items():
        assert torch.equal(moved["resumed"][name], tensor), name
    name = "model.layers.0.mlp.up_proj.weight"
    assert (moved["steps"][0][name] - moved["loaded"][name]).abs().max() < 2e-2, "it went on from the loaded weights"


def test_what_megatron_cannot_offload_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"offload=0.5 without distributed=true"):
        OptimizerConfig(offload=0.5).check()
    OptimizerConfig(offload=0.5, distributed=True).check()
