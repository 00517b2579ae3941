"""An optimizer's state in a form that any layout can load.

Megatron stores moments and main parameters under the model's own names and shapes, so that they reshard like weights. It also
stores how it grouped the parameters, which depends on the layout: with expert parallelism there are two optimizers, without it
one. The groups' values come from the recipe or are set at every update; only the number of updates is state. So only this
number is stored, and everything else is the present optimizer's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedBase
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer

_FORMAT = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": False,
    "chained_optim_avoid_prefix": True,
}
_TORCH_ADAM = (torch.optim.Adam, torch.optim.AdamW)


def sharded_state(optimizer: MegatronOptimizer, model_states: dict[str, Any], *, loading: bool) -> dict[str, Any]:
    """Megatron's sharded state of `optimizer`, with only tensors to be stored.

    Args:
        optimizer: Megatron's, chained or not.
        model_states: the sharded states of the model's chunks, by the names that Megatron's optimizer expects.
        loading: whether the state is to be filled; states that do not exist yet are then created.

    """
    whole = model_states if len(model_states) > 1 else model_states["model"]
    _make_states(optimizer)
    state = optimizer.sharded_state_dict(whole, is_loading=loading, metadata=_FORMAT)
    return {key: _only_tensors(value) for key, value in state.items()}


def _make_states(optimizer: MegatronOptimizer) -> None:
    """Create the state of an optimizer that has never stepped, such as the policy's during a critic's warm-up."""
    for part in _parts(optimizer):
        if part.optimizer is None or part.optimizer.state:
            continue
        if isinstance(part.optimizer, HybridDeviceOptimizer):
            _make_states_in_host_memory(part.optimizer)
            continue
        if not isinstance(part.optimizer, _TORCH_ADAM):
            part.init_state_fn(part.optimizer, part.config)
            continue
        # Megatron would create moments without a step count, which torch's Adam needs.
        for parameter in (each for group in part.optimizer.param_groups for each in group["params"]):
            part.optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def _make_states_in_host_memory(optimizer: HybridDeviceOptimizer) -> None:
    """An update by nothing: the optimizers inside, of which each has a form of its own, then have their states."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.decoupled_grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for inner in optimizer.sub_optimizers:
        for state in inner.state.values():
            if "step" in state:
                state["step"].zero_()
        for group in inner.param_groups:
            if "step" in group:
                group["step"] = 0


def _only_tensors(value: Any) -> Any:
    """`value` with everything that is not a tensor marked as not stored."""
    if isinstance(value, ShardedBase | LocalNonpersistentObject):
        return value
    if isinstance(value, dict):
        return {key: _only_tensors(entry) for key, entry in value.items()}
    if isinstance(value, list) and any(isinstance(entry, dict | list | ShardedBase) for entry in value):
        return [_only_tensors(entry) for entry in value]
    return LocalNonpersistentObject(value)


def updates_of(optimizer: MegatronOptimizer) -> int:
    """How many updates the optimizer has made: torch counts them per parameter, fused optimizers per group."""
    counts = [0]
    for part in _parts(optimizer):
        counts += [int(state["step"]) for state in part.optimizer.state.values() if "step" in state]
        counts += [int(group["step"]) for group in part.optimizer.param_groups if "step" in group]
    return max(counts)


def load_state(optimizer: MegatronOptimizer, state: dict[Any, Any], updates: int) -> None:
    """Fill `optimizer` from a loaded sharded state and its number of updates."""
    parts = list(_parts(optimizer))
    states = [state] if len(parts) == 1 else [state[index] for index in range(len(parts))]
    for part, loaded in zip(parts, states, strict=True):
        inner = loaded.get("optimizer", loaded)
        for group in inner.get("param_groups", ()):
            if "step" in group:
                group["step"] = updates
        if "state" in inner and isinstance(part.optimizer, _TORCH_ADAM):
            inner["state"]["common_step"] = torch.tensor(float(updates))
    optimizer.load_state_dict(state)


def optimizer_tensors(optimizer: MegatronOptimizer) -> Iterator[torch.Tensor]:
    """This rank's main parameters and moments, in an order that the layout decides."""
    for part in _parts(optimizer):
        for parameter in (each for group in part.optimizer.param_groups for each in group["params"]):
            yield parameter.detach()
            state = part.optimizer.state[parameter]
            yield from (state[name] for name in sorted(state) if isinstance(state[name], torch.Tensor))


def _parts(optimizer: MegatronOptimizer) -> Iterator[Any]:
    if isinstance(optimizer, ChainedOptimizer):
        yield from optimizer.chained_optimizers
    else:
        yield optimizer
