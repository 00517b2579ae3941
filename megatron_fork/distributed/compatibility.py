"""Megatron-core on a machine without CUDA: every patch is in this one file, with the views of `cpu_view`.

Megatron names the CUDA device in many places (`device="cuda"`, `torch.cuda.current_device()`, `tensor.cuda()`). On a CPU those
names must mean the CPU. Only inside `megatron.*` modules the global name `torch` is bound to a thin view of torch (`cpu_view`)
that does this; for all other code torch keeps its meaning. With CUDA only the last two patches and the fifth are active.

Each patch and its reason, in every version from 0.16.1 to 0.19 unless said otherwise:

1. `torch` in `megatron.*` is the CPU view: factories map `device="cuda"` to the CPU and drop `pin_memory`; streams, events
   and synchronisation do nothing, since gloo and the CPU run in program order.
2. `Tensor.cuda()` returns the tensor: Megatron's optimizers and checkpoint exchange call the method.
3. `Tensor.type()` returns `torch.cuda.FloatTensor` when a Megatron module calls it: its optimizers sort parameters by that
   name. Callers outside Megatron get torch's own result.
4. The model-parallel random state tracker forks and restores the CPU generator, as there is no CUDA generator.
5. The distributed optimizer on torch's AdamW loads one *shared* `step` tensor for all parameters; AdamW increments it
   in place once per parameter. Each parameter gets its own tensor, and `step` is kept when states are set. And when its
   buffers are written, the padding at the end of a bucket counts as content: Megatron writes the buckets end to end without
   it, but reads parameters at their places with it, so that everything after the first bucket would be misplaced or cut off.
6. The expert dispatcher turns split sizes into numbers only if they are on a GPU, and passes on tensors otherwise; the
   collective needs a sequence of numbers.
7. gloo gathers and scatters only parts of equal size, but experts that are sharded over tensor ranks exchange parts of several
   sizes. Gathers are padded, and a reduce-scatter is an all-reduce of which each rank keeps its part.
8. The router asks whether `te_general_gemm` is None, a name that does not exist without Transformer Engine (GPU or not);
   until 0.16.
9. The writer of checkpoints, a fork of the trainer, reports where each tensor was written through a queue in a third process,
   which imports torch and Megatron to pass the report on: seconds of a core at every run's first checkpoint. Here the report
   is written to memory that both processes share.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import os
import pickle
import queue
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch

from megatron_fork.distributed.cpu_view import CpuTorch

_MEGATRON = "megatron."


class ReportsOfForks:
    """A queue from forks of this process, one at a time, back to it; created before the fork."""

    def __init__(self) -> None:
        self._memory = os.memfd_create("reports of checkpoint writers")
        self._read = 0

    def put(self, report: Any) -> None:
        data = pickle.dumps(report)
        with open(os.dup(self._memory), "r+b") as end:  # noqa: PTH123
            end.seek(0, os.SEEK_END)
            end.write(len(data).to_bytes(8, "little") + data)

    def get_nowait(self) -> Any:
        header = os.pread(self._memory, 8, self._read)
        if len(header) < 8:
            raise queue.Empty
        size = int.from_bytes(header, "little")
        with open(os.dup(self._memory), "rb") as start:  # noqa: PTH123
            start.seek(self._read + 8)
            report = pickle.loads(start.read(size))
        self._read += 8 + size
        if self._read == os.fstat(self._memory).st_size:
            os.ftruncate(self._memory, 0)
            self._read = 0
        return report


class _RebindOnImport:
    """A finder that binds the CPU view in Megatron modules imported after `install`."""

    def __init__(self, view: CpuTorch) -> None:
        self.view = view

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(_MEGATRON):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_rebind(module: types.ModuleType) -> None:
            execute(module)
            _rebind(module, self.view)

        spec.loader.exec_module = execute_and_rebind  # type: ignore[method-assign]
        return spec


def _rebind(module: types.ModuleType, view: CpuTorch) -> None:
    if vars(module).get("torch") is torch:
        vars(module)["torch"] = view


@functools.cache
def install() -> None:
    """Patch megatron-core to run on this machine; further calls do nothing."""
    _patch_router_without_transformer_engine()
    _patch_distributed_optimizer()
    _patch_reports_of_writers()
    if torch.cuda.is_available():
        return
    view = CpuTorch()
    for name, module in list(sys.modules.items()):
        if name.startswith(_MEGATRON):
            _rebind(module, view)
    sys.meta_path.insert(0, _RebindOnImport(view))
    _patch_tensor_methods()
    _patch_random_state_tracker()
    _patch_expert_dispatcher()
    _patch_uneven_collectives()


def _patch_router_without_transformer_engine() -> None:
    from megatron.core.transformer.moe import moe_utils

    if not moe_utils.HAVE_TE:
        moe_utils.te_general_gemm = None


def _patch_reports_of_writers() -> None:
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = ReportsOfForks()


def _patch_tensor_methods() -> None:
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    original = torch.Tensor.type

    def type_as_megatron_spells_it(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        asked_by = sys._getframe(1).f_globals.get("__name__", "")
        if not args and not kwargs and asked_by.startswith(_MEGATRON):
            return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    torch.Tensor.type = type_as_megatron_spells_it  # type: ignore[method-assign,assignment]


def _patch_random_state_tracker() -> None:
    from megatron.core.tensor_parallel import random

    @contextlib.contextmanager
    def fork(self: Any, name: str = "model-parallel-rng") -> Iterator[None]:
        outer = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(outer)

    def set_state(state: torch.Tensor, device: int = -1, graph_safe: bool = False) -> None:
        torch.set_rng_state(state)

    random.CudaRNGStatesTracker.fork = fork
    random._set_cuda_rng_state = set_state


def _patch_distributed_optimizer() -> None:
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    set_states = DistributedOptimizer._set_main_param_and_optimizer_states
    load_state_dict = DistributedOptimizer.load_state_dict
    sharded_state_dict = DistributedOptimizer.sharded_state_dict

    def set_states_and_keep_step(self: Any, model_param: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        kept = {"step": state["step"]} if "step" in state else {}
        set_states(self, model_param, {**kept, **tensors})

    def load_with_a_step_each(self: Any, state_dict: dict[str, Any]) -> None:
        load_state_dict(self, state_dict)
        for state in self.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()

    def sharded_with_padding(self: Any, model_state: Any, is_loading: bool = False, **options: Any) -> Any:
        for buffer in self.buffers:
            buffer.numel_unpadded = buffer.numel
            for bucket in buffer.buckets:
                bucket.numel_unpadded = bucket.grad_data.numel()
        return sharded_state_dict(self, model_state, is_loading, **options)

    DistributedOptimizer.sharded_state_dict = sharded_with_padding
    DistributedOptimizer._set_main_param_and_optimizer_states = set_states_and_keep_step
    DistributedOptimizer.load_state_dict = load_with_a_step_each


def _patch_expert_dispatcher() -> None:
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    def leave_tensor_form(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    moe_utils.maybe_move_tensor_to_cpu = token_dispatcher.maybe_move_tensor_to_cpu = leave_tensor_form


def _patch_uneven_collectives() -> None:
    from megatron.core.tensor_parallel import mappings

    gather_even, reduce_scatter_even = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim

    def gather(tensor: torch.Tensor, group: Any, sizes: list[int] | None = None, *rest: Any) -> torch.Tensor:
        if sizes is None or len(set(sizes)) == 1:
            return gather_even(tensor, group, sizes, *rest)
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def reduce_scatter(tensor: torch.Tensor, group: Any, sizes: list[int] | None = None, *rest: Any) -> torch.Tensor:
        if sizes is None or len(set(sizes)) == 1:
            return reduce_scatter_even(tensor, group, sizes, *rest)
        total = tensor.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=group)
        return total.split(sizes)[group.rank()].clone()

    mappings._gather_along_first_dim = gather
    mappings._reduce_scatter_along_first_dim = reduce_scatter
