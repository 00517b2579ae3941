"""A checkpoint holds all that training needs, under any layout: who loads it goes on as the one that wrote it.

Under the same layout bit for bit, under another within rounding; and what is converted to Hugging Face is what was trained.
Pairs of layouts are drawn anew with every seed; those that once failed are always among them.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import legal, model_config, name_of, trajectories
from ranks import run_on_ranks
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_fork.conversion import to_hf

# Written under the first, read under the second; whether the model has experts, and whether the optimizer is distributed.
Case = tuple[dict[str, Any], dict[str, Any], bool, bool]
ALWAYS: list[Case] = [
    ({"pipeline": 2, "virtual_pipeline": 2}, {"pipeline": 2, "virtual_pipeline": 2}, False, False),
    # Buckets with padding between them: the state behind the first was lost.
    ({"pipeline": 2}, {"pipeline": 2}, False, True),
    ({"pipeline": 2}, {}, False, True),
    ({"expert": 2}, {"expert": 2}, True, True),
    # Two optimizers and one: Megatron finds no group of parameters for the other's.
    ({"expert": 2}, {}, True, False),
    ({}, {"expert": 2}, True, True),
]
DRAWN = 3


def cases(seed: int) -> list[Case]:
    generator = random.Random(seed)
    drawn = []
    for number in range(DRAWN):
        layouts = list(legal(2, experts=number % 2 == 1))
        drawn.append((*generator.sample(layouts, 2), number % 2 == 1, generator.random() < 0.5))
    return ALWAYS + drawn


def resumed(folder: str, chosen: list[Case]) -> list[dict[str, Any]]:
    """For each case how far the resumed run is from the uninterrupted one, and whether it moved at all."""
    return [_resumed(Path(folder, str(number)), *case) for number, case in enumerate(chosen)]


def _resumed(
    folder: Path, written: dict[str, Any], read: dict[str, Any], experts: bool, distributed: bool
) -> dict[str, Any]:
    from megatron_fork import objective, selection
    from megatron_fork.checkpoint import Checkpoints, load_training_state
    from megatron_fork.clock import Clock
    from megatron_fork.conversion import iter_hf_weights, load_weights
    from megatron_fork.distributed import Layout, ParallelConfig, parallel_layout
    from megatron_fork.policy import (
        Learner,
        LearningRates,
        OptimizerConfig,
        Policy,
        PolicyConfig,
        TrainedModels,
        split_into_mini_batches,
    )

    hf_config = model_config(tied=True, experts=experts)
    batches = split_into_mini_batches(trajectories(), 2, group_size=4, seed=5)
    checkpoints = Checkpoints(folder, write_model_files=hf_config.save_pretrained)

    def made(layout: Layout) -> Policy:
        adam = OptimizerConfig(learning_rate=1e-3, distributed=distributed)
        return Policy(PolicyConfig(tokens_per_micro_batch=70), adam, hf_config, layout)

    def learn(policy: Policy, step: int) -> dict[str, torch.Tensor]:
        learner = Learner(
            TrainedModels(policy), selection.SelectionConfig(), objective.ObjectiveConfig(), mismatch_limit=100.0
        )
        learner.step(batches[step : step + 1], step=step, rates=LearningRates(1e-3), clock=Clock())
        return {name: tensor.clone() for name, tensor in iter_hf_weights(policy.model, bucket_bytes=5000)}

    with parallel_layout(ParallelConfig(**written)) as layout:
        whole = made(layout)
        torch.manual_seed(11)
        load_weights(whole.model, AutoModelForCausalLM.from_config(hf_config).state_dict())
        whole.weights_changed()
        first = learn(whole, 0)
        checkpoints.save(1, {"policy": whole}, {"step": 1})
        expected = learn(whole, 1)  # while the checkpoint is being written
        checkpoints.wait()
    saved = checkpoints.latest()
    assert saved is not None
    with parallel_layout(ParallelConfig(**read)) as layout:
        policy = made(layout)
        load_training_state(saved, {"policy": policy})
        loaded = {name: tensor.clone() for name, tensor in iter_hf_weights(policy.model)}
        found = learn(policy, 1)
    return {
        "loaded": _largest(loaded, first),
        "found": _largest(found, expected),
        "moved": _largest(expected, first),
        "first": first,
    }


def _largest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - tensor).norm() / tensor.norm()) for name, tensor in theirs.items())


@pytest.mark.slow
def test_training_goes_on_under_any_layout(tmp_path: Path) -> None:
    chosen = cases(seed=random.SystemRandom().randrange(10**6))
    for parallel, _, experts, _ in ALWAYS:
        assert any(parallel.items() <= each.items() for each in legal(2, experts=experts))
    results = run_on_ranks(resumed, 2, str(tmp_path), chosen, time_limit=600.0, have_children=True)[0]
    for number, (case, result) in enumerate(zip(chosen, results, strict=True)):
        written, read, experts, distributed = case
        named = f"{name_of(written, {})} -> {name_of(read, {})}, experts={experts}, distributed={distributed}"
        print(f"{named}: {result['found']:.1e}")
        assert result["moved"] > 1e-4, named
        assert result["loaded"] == 0.0, named
        assert result["found"] <= (0.0 if written == read else 1e-5), named
        to_hf(tmp_path / str(number), tmp_path / f"{number}-converted")
        converted = load_file(tmp_path / f"{number}-converted" / "model.safetensors")
        assert converted.keys() == result["first"].keys(), named
        assert all(torch.equal(converted[name], tensor) for name, tensor in result["first"].items()), named


def never_stepped(folder: str) -> list[float]:
    """How far two updates after a checkpoint of an optimizer without any are from two updates without a checkpoint."""
    from megatron_fork import objective, selection
    from megatron_fork.checkpoint import Checkpoints, load_training_state
    from megatron_fork.clock import Clock
    from megatron_fork.conversion import iter_hf_weights, load_initial
    from megatron_fork.distributed import Layout, ParallelConfig, parallel_layout
    from megatron_fork.models import ModelConfig as Source
    from megatron_fork.policy import (
        Learner,
        LearningRates,
        OptimizerConfig,
        Policy,
        PolicyConfig,
        TrainedModels,
        split_into_mini_batches,
    )

    hf_config = model_config(tied=True, experts=False)
    batches = split_into_mini_batches(trajectories(), 3, group_size=4, seed=5)

    def made(layout: Layout, distributed: bool) -> Policy:
        adam = OptimizerConfig(learning_rate=1e-3, distributed=distributed)
        policy = Policy(PolicyConfig(), adam, hf_config, layout)
        load_initial(policy.model, Source(hf_config={"model_type": "qwen3"}), seed=1)
        policy.weights_changed()
        return policy

    def learn(policy: Policy) -> dict[str, torch.Tensor]:
        learner = Learner(
            TrainedModels(policy), selection.SelectionConfig(), objective.ObjectiveConfig(), mismatch_limit=100.0
        )
        learner.step(batches, step=0, rates=LearningRates(1e-3), clock=Clock())
        return {name: tensor.clone() for name, tensor in iter_hf_weights(policy.model)}

    found = []
    for distributed in (False, True):
        checkpoints = Checkpoints(Path(folder, str(distributed)))
        with parallel_layout(ParallelConfig()) as layout:
            expected = learn(made(layout, distributed))
            first = made(layout, distributed)
            checkpoints.save(0, {"policy": first}, {"step": 0})
            checkpoints.wait()
            saved = checkpoints.latest()
            assert saved is not None
            second = made(layout, distributed)
            load_training_state(saved, {"policy": second})
            found += [_largest(learn(first), expected), _largest(learn(second), expected)]
    return found


def two_networks(folder: str) -> dict[str, float]:
    """How far each of two networks, of which the second is written much faster, is from itself after a round trip."""
    from megatron_fork.checkpoint import Checkpoints, load_training_state
    from megatron_fork.conversion import iter_hf_weights, load_initial
    from megatron_fork.distributed import ParallelConfig, parallel_layout
    from megatron_fork.models import ModelConfig as Source
    from megatron_fork.policy import OptimizerConfig, Policy, PolicyConfig

    large, small = model_config(tied=True, experts=False), model_config(tied=True, experts=False)
    large.intermediate_size = 100_000
    with parallel_layout(ParallelConfig()) as layout:

        def made(seed: int) -> dict[str, Policy]:
            networks = {}
            for name, hf_config in {"policy": large, "critic": small}.items():
                networks[name] = Policy(PolicyConfig(), OptimizerConfig(), hf_config, layout)
                load_initial(networks[name].model, Source(hf_config={"model_type": "qwen3"}), seed=seed)
            return networks

        def weights(network: Policy) -> dict[str, torch.Tensor]:
            return {name: tensor.clone() for name, tensor in iter_hf_weights(network.model)}

        checkpoints, first, second = Checkpoints(Path(folder)), made(1), made(2)
        checkpoints.save(0, first, {"step": 0})
        checkpoints.wait()
        saved = checkpoints.latest()
        assert saved is not None
        load_training_state(saved, second)
        return {name: _largest(weights(second[name]), weights(first[name])) for name in first}


@pytest.mark.slow
def test_policy_and_critic_are_kept_apart(tmp_path: Path) -> None:
    """The places in the files of one were taken for those of the other, where that had been written first."""
    for found in run_on_ranks(two_networks, 2, str(tmp_path), have_children=True):
        assert found == {"policy": 0.0, "critic": 0.0}


@pytest.mark.slow
def test_an_optimizer_that_never_stepped_is_saved_and_resumed(tmp_path: Path) -> None:
    assert run_on_ranks(never_stepped, 2, str(tmp_path), have_children=True) == [[0.0] * 4] * 2
