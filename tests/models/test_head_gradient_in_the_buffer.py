"""A bfloat16 policy's LM head adds its gradient to Megatron's float32 buffer once, tied to the embedding or not.

Its hook would sweep that buffer, the largest of all, to add autograd's zeros; where an embedding shares the weight it must add.
"""

from typing import Any

import torch
from support.layouts import model_config, trajectories
from support.ranks import run_on_ranks
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_fork import objective, selection
from megatron_fork.clock import Clock
from megatron_fork.conversion import load_weights
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


def gradients(tied: bool, precision: Any) -> tuple[dict[str, Tensor], bool]:
    """What one update of several micro-batches leaves in the buffers, and whether Megatron's hook leaves the head's alone."""
    hf_config = model_config(tied=tied, experts=False)
    torch.manual_seed(11)
    weights = {
        name: each.bfloat16().float() for name, each in AutoModelForCausalLM.from_config(hf_config).state_dict().items()
    }
    with parallel_layout(ParallelConfig()) as layout:
        policy = Policy(
            PolicyConfig(precision=precision, tokens_per_micro_batch=70, tokens_per_statistics_batch=90),
            OptimizerConfig(learning_rate=1e-6, clip_gradient=0.0),
            hf_config,
            layout,
            temperature=0.8,
        )
        load_weights(policy.model, weights)
        policy.weights_changed()
        goal = objective.ObjectiveConfig()
        learner = Learner(TrainedModels(policy), selection.SelectionConfig(tokens="all"), goal, mismatch_limit=100.0)
        (batch, *_) = split_into_mini_batches(trajectories(), 3, group_size=4, seed=5)
        learner.step([batch], step=1, rates=LearningRates(1e-6), clock=Clock())
        named = dict(policy.model[0].named_parameters())
        head = named["embedding.word_embeddings.weight" if tied else "output_layer.weight"]
        return {name: each.main_grad.clone() for name, each in named.items()}, bool(head.grad_added_to_main_grad)


def all_gradients() -> list[Any]:
    return [(gradients(tied, "bf16"), gradients(tied, "fp32")) for tied in (False, True)]


def test_once() -> None:
    (found,) = run_on_ranks(all_gradients, 1)
    for (half, left_alone), (whole, _) in found:
        assert left_alone
        for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
            if name in whole:
                difference = float((half[name] - whole[name]).norm() / whole[name].norm())
                assert difference < 0.1, (name, difference)
