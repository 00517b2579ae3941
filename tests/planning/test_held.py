"""What the planner says that a rank holds is what Megatron allocates, to the byte: weights, gradients and optimizer state."""

from typing import Any

import pytest
from support.ranks import run_on_ranks
from support.tiny_qwen3 import family_config
from torch import Tensor

from megatron_fork.config import RunConfig
from megatron_fork.distributed import ParallelConfig, parallel_layout
from megatron_fork.models import ComputeConfig, Footprint, ParameterCounts
from megatron_fork.objective import ObjectiveConfig
from megatron_fork.planning import Held, Replicas, held_by_stage, optimizer_bytes
from megatron_fork.policy import Critic, CriticConfig, OptimizerConfig, Policy, PolicyConfig
from megatron_fork.policy.network import Network


def test_optimizer_bytes() -> None:
    """12 bytes a parameter beside half precision, 8 beside float32; each kind is sharded over its own replicas."""
    footprint = Footprint(dense=1000, experts=600)
    whole, sharded, replicas = OptimizerConfig(), OptimizerConfig(distributed=True), Replicas(4, 2)
    assert optimizer_bytes(whole, footprint, half=True, replicas=replicas) == 12 * 1600
    assert optimizer_bytes(whole, footprint, half=False, replicas=replicas) == 8 * 1600
    assert optimizer_bytes(sharded, footprint, half=True, replicas=replicas) == 12 * (250 + 300)


def recipe(case: dict[str, Any]) -> RunConfig:
    return RunConfig(
        parallel=ParallelConfig(**case["parallel"]),
        policy=PolicyConfig(precision=case["precision"]),
        optimizer=OptimizerConfig(distributed=case["distributed"]),
        critic=CriticConfig(optimizer=OptimizerConfig(distributed=case["distributed"])),
        objective=ObjectiveConfig(advantage="gae") if case["critic"] else ObjectiveConfig(),
        compute=ComputeConfig(backend="local"),
    )


def _allocated(network: Network) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer state of this rank, without the counter of steps and main parameters that are
    the model's own.
    """
    parameters = [parameter for chunk in network.model for parameter in chunk.parameters()]
    weights = sum(parameter.nbytes for parameter in parameters)
    gradients = sum(parameter.main_grad.nbytes for parameter in parameters)
    inner = list(getattr(network.optimizer, "chained_optimizers", [network.optimizer]))
    state: dict[int, Tensor] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    for optimizer in inner:
        torch_optimizer = optimizer.optimizer
        for group in torch_optimizer.param_groups:
            for main in group["params"]:
                if main.untyped_storage().data_ptr() not in own:
                    state[id(main)] = main
                for name in ("exp_avg", "exp_avg_sq"):
                    if name in torch_optimizer.state[main]:
                        state[id(torch_optimizer.state[main][name])] = torch_optimizer.state[main][name]
    return weights, gradients, sum(tensor.nbytes for tensor in state.values())


def _step(network: Network) -> None:
    """One optimizer step, after which Adam has its state."""
    for chunk in network.model:
        for parameter in chunk.parameters():
            parameter.main_grad.fill_(1e-3)
    network.optimizer.step()


def _built(cases: list[dict[str, Any]]) -> list[dict[str, tuple[int, tuple[int, int, int]]]]:
    """By network: the pipeline stage, and what `_allocated` says, the optimizer summed over the stage's replicas."""
    found = []
    for case in cases:
        config, hf_config = recipe(case), family_config(case["family"], tie_word_embeddings=case["tied"])
        with parallel_layout(config.parallel) as layout:
            shared = (config.policy, config.optimizer, hf_config, layout)
            networks: dict[str, Network] = {"policy": Policy(*shared, compute=config.compute)}
            if case["critic"]:
                networks["critic"] = Critic(*shared, compute=config.compute)
            by_network = {}
            for name, network in networks.items():
                _step(network)
                by_network[name] = (layout.pipeline.rank(), _allocated(network))
            found.append(by_network)
    return found


def _cases() -> list[dict[str, Any]]:
    layouts: list[dict[str, Any]] = [{}, {"tensor": 2}, {"pipeline": 2}, {"context": 2}]
    cases = []
    for family, tied, parallel, precision, distributed in (
        ("qwen3", True, layouts[0], "bf16", True),
        ("qwen3", False, layouts[0], "fp32", True),
        ("qwen3", False, layouts[1], "bf16", False),
        ("qwen3", True, layouts[2], "bf16", False),
        ("qwen3", False, layouts[2], "fp32", False),
        ("llama", True, layouts[1], "fp32", True),
        ("qwen2", False, layouts[3], "bf16", True),
        ("qwen3_moe", False, {"expert": 2}, "bf16", True),
        ("qwen3_moe", True, layouts[2], "bf16", True),
        ("qwen3_moe", False, {"tensor": 2, "sequence": True, "expert": 2}, "fp32", False),
    ):
        cases.append(
            {
                "family": family,
                "tied": tied,
                "parallel": parallel,
                "precision": precision,
                "distributed": distributed,
                "critic": family == "qwen3",
            }
        )
    return cases


@pytest.mark.slow
def test_as_megatron_allocates() -> None:
    cases = _cases()
    for case, *of_ranks in zip(cases, *run_on_ranks(_built, 2, cases), strict=True):
        config, hf_config = recipe(case), family_config(case["family"], tie_word_embeddings=case["tied"])
        computed = held_by_stage(config, ParameterCounts.of(hf_config), 2)
        for name in of_ranks[0]:
            for stage, by_name in enumerate(computed):
                held: Held = by_name[name]
                here = [sizes for at, sizes in (rank[name] for rank in of_ranks) if at == stage]
                assert {sizes[0] for sizes in here} == {held.weights}, case
                assert {sizes[1] for sizes in here} == {held.gradients}, case
                assert sum(sizes[2] for sizes in here) == len(here) * held.optimizer, case
