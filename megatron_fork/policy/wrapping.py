"""Megatron's data-parallel wrapper around each chunk, its Adam optimizer, and the functions that its schedule calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from torch import Tensor, nn

from megatron_fork.distributed import versions
from megatron_fork.errors import ConfigError
from megatron_fork.models import accumulate_in_buffers
from megatron_fork.policy.config import OptimizerConfig, check_offload


def data_parallel(config: OptimizerConfig, chunks: Sequence[nn.Module]) -> Iterator[DistributedDataParallel]:
    """Each chunk with its gradient buffers: float32, reduced over the data and context ranks."""
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=config.distributed,
        overlap_grad_reduce=config.overlap_gradients,
        overlap_param_gather=config.overlap_parameters,
        check_for_nan_in_grad=False,  # `Network.step` asks, once all ranks have reduced: see there
    )
    for index, chunk in enumerate(chunks):
        # Later chunks are reduced while others compute: buckets would only cost messages.
        wrapped = DistributedDataParallel(chunk.config, settings, chunk, disable_bucketing=index > 0)
        accumulate_in_buffers(chunk)
        yield wrapped


def has_gpu() -> bool:
    return torch.cuda.is_available()


def build_optimizer(config: OptimizerConfig, chunks: Sequence[nn.Module], dtype: torch.dtype) -> MegatronOptimizer:
    """Megatron's optimizer over the wrapped chunks; main parameters are float32 for any dtype of the model."""
    if config.offload and not has_gpu():
        raise ConfigError(f"offload={config.offload} needs a GPU", hint="there is no device memory to save: set 0")
    if config.offload and not versions.can_offload_optimizer():
        raise ConfigError(
            f"offload={config.offload} with this megatron-core needs Transformer Engine",
            hint="install it (docs/gpu.md), or take megatron-core 0.19, or set offload=0",
        )
    check_offload(config, dtype)
    return get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            adam_beta1=config.beta1,
            adam_beta2=config.beta2,
            clip_grad=config.clip_gradient,
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=config.distributed,
            overlap_param_gather=config.overlap_parameters,
            # In host memory, Megatron's optimizer holds the main parameters itself only if it is called precision-aware.
            # Otherwise those on the GPU stay, and loaded weights do not reach the ones that it updates.
            use_precision_aware_optimizer=config.offload > 0,
            optimizer_cpu_offload=config.offload > 0,
            optimizer_offload_fraction=config.offload,
            overlap_cpu_optimizer_d2h_h2d=config.offload > 0,
        ),
        list(chunks),
    )


def connect_schedule(config: OptimizerConfig, chunks: Sequence[nn.Module], optimizer: MegatronOptimizer) -> None:
    """Set the functions by which Megatron's schedule reduces gradients, gathers parameters and scales losses."""
    wrapped = [chunk for chunk in chunks if isinstance(chunk, DistributedDataParallel)]
    shared: Any = wrapped[0].config
    shared.finalize_model_grads_func = finalize_gradients
    shared.grad_scale_func = optimizer.scale_loss
    several = len(wrapped) > 1
    if config.overlap_gradients:
        shared.no_sync_func = [chunk.no_sync for chunk in wrapped] if several else wrapped[0].no_sync
        if several:
            shared.grad_sync_func = [chunk.start_grad_sync for chunk in wrapped]
    if config.overlap_parameters and several:
        shared.param_sync_func = [chunk.start_param_sync for chunk in wrapped]


def finalize_gradients(chunks: list[nn.Module], _: Tensor | None, **groups: Any) -> None:
    """Megatron's reductions without its division by a token count: the loss has already been divided."""
    finalize_model_grads(chunks, None, **groups)
