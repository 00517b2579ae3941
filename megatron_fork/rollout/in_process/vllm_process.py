"""Starts vLLM's engine in the trainer's process, with the trainer's ranks and device; its random generators are kept.

On the trainer's GPUs the two use memory in turns: the engine sleeps while the policy trains, and wakes with new weights.
"""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from megatron_fork import distributed
from megatron_fork.errors import ConfigError, NotInstalledError, RolloutError

if TYPE_CHECKING:
    from megatron_fork.rollout.config import ColocatedConfig, RolloutConfig

_CPU_CACHE_BYTES = 512 << 20
# vLLM's sleep level: weights are dropped, not kept in main memory, since the next ones differ.
_DROP_ALL = 2
_ENVIRONMENT = {
    "LOCAL_RANK": "0",  # as in `distributed.device`
    "VLLM_LOGGING_LEVEL": "ERROR",  # it warns at its start and at every update
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def check_colocated(config: RolloutConfig, ranks: int) -> None:
    """Raises `ConfigError` if this Python has no vLLM, or the ranks do not divide into engines."""
    vllm_module("vllm.v1.engine.llm_engine")
    if ranks % config.colocated.tensor:
        raise ConfigError(
            f"rollout.colocated.tensor={config.colocated.tensor} with {ranks} ranks: they do not divide into engines",
            hint="choose a divisor of the number of ranks",
        )


def start_vllm(config: ColocatedConfig, **arguments: Any) -> Any:
    """An `LLMEngine` in this process, still without weights; raises `ConfigError` with vLLM's message if it refuses."""
    llm_engine, engine_args = vllm_module("vllm.v1.engine.llm_engine"), vllm_module("vllm.engine.arg_utils")
    for name, value in (("RANK", distributed.rank()), ("WORLD_SIZE", distributed.world_size())):
        os.environ.setdefault(name, str(value))
    on_gpu = torch.cuda.is_available()
    cache = config.kv_cache_mebibytes << 20 or (None if on_gpu else _CPU_CACHE_BYTES)
    if not on_gpu:
        _forget_killed_runs(config.tensor)
    try:
        with _randomness_kept():
            return llm_engine.LLMEngine.from_engine_args(
                engine_args.EngineArgs(
                    **arguments,
                    tensor_parallel_size=config.tensor,
                    distributed_executor_backend="external_launcher",  # the trainer's ranks
                    gpu_memory_utilization=config.gpu_memory_utilization,
                    kv_cache_memory_bytes=cache,
                    enforce_eager=config.eager or not on_gpu,
                    skip_tokenizer_init=True,
                    generation_config="vllm",
                    logprobs_mode="processed_logprobs",
                    worker_extension_cls="megatron_fork.serving.vllm_worker.WeightReceiver",
                    logits_processors=["megatron_fork.serving.vllm_temperature:EntropyTemperatureProcessor"],
                    disable_log_stats=True,
                )
            )
    except ValueError as error:
        raise ConfigError(
            f"rollout.engine=vllm_colocated: vLLM refuses: {one_line(error)}", hint="see rollout.colocated"
        ) from error


def vllm_module(module: str) -> Any:
    """A module of vLLM, which only this engine needs; raises `NotInstalledError` if this Python has no vLLM."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the core must run in this process
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NotInstalledError(
            f"rollout.engine=vllm_colocated: vLLM cannot be imported here: {one_line(error)}",
            hint="the project's scripts/engine_environment.sh vllm-colocated makes an environment with it",
        ) from error


def _forget_killed_runs(tensor: int) -> None:
    """Remove this rank's shared memory of a killed run: on a CPU vLLM uses the same name in every run, and refuses an old one.

    A run that still uses it keeps it: only the name is removed.
    """
    first, place = distributed.rank() // tensor * tensor, distributed.rank() % tensor
    ranks = "-".join(str(rank) for rank in range(first, first + tensor))
    for left in Path("/dev/shm").glob(f"-tp:*-[[]{ranks}]-cpushm_{place}"):
        with suppress(OSError):
            left.unlink()


@contextmanager
def _randomness_kept() -> Iterator[None]:
    """Restore the random generators: vLLM seeds them all when it starts, and the trainer uses them."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield
    random.setstate(python)
    np.random.set_state(numpy)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


class Sleeper(Protocol):
    """The methods of vLLM's engine that are used here."""

    def sleep(self, level: int) -> object: ...

    def wake_up(self, tags: list[str]) -> object: ...


class SleepMode:
    """Whether the engine sleeps, and the order in which its memory is freed and allocated again."""

    def __init__(self, engine: Sleeper, *, can_sleep: bool) -> None:
        """`can_sleep`: False if the platform has no sleep mode; the engine then keeps its memory."""
        self._engine = engine
        self._can_sleep = can_sleep
        self._sleeps = False

    def begin(self) -> None:
        """Free the memory of weights and cache."""
        if self._can_sleep and not self._sleeps:
            self._engine.sleep(level=_DROP_ALL)
            self._sleeps = True

    @contextmanager
    def ended_by_weights(self) -> Iterator[None]:
        """Allocate the weights' memory, to be filled inside; the cache's follows, when no copies of weights are left."""
        if self._sleeps:
            self._engine.wake_up(tags=["weights"])
        yield
        if self._sleeps:
            self._engine.wake_up(tags=["kv_cache"])
            self._sleeps = False

    def refuse_requests(self) -> None:
        """Raise `RolloutError` if the engine sleeps and so has no weights."""
        if self._sleeps:
            raise RolloutError(
                "the engine sleeps since its last rest and has no weights",
                hint="update its weights before you send requests",
            )
