"""`torch` and `torch.cuda` for megatron-core on a machine without CUDA: the CPU under CUDA's names.

This file changes nothing: `compatibility` puts these views in place.
"""

from __future__ import annotations

import contextlib
import functools
import time
import types
from collections.abc import Callable
from typing import Any

import torch

_CPU = torch.device("cpu")
_FACTORIES = (
    "tensor as_tensor zeros ones empty full arange rand randn eye empty_like zeros_like ones_like full_like autocast"
).split()


class CpuEvent:
    """Replaces `torch.cuda.Event`: work is done when the call returns, so an event is a time stamp."""

    def __init__(self, **_: object) -> None:
        self.seconds = 0.0

    def record(self, stream: object = None) -> None:
        self.seconds = time.perf_counter()

    def elapsed_time(self, end: CpuEvent) -> float:
        """Milliseconds, like CUDA's event."""
        return (end.seconds - self.seconds) * 1e3

    def wait(self, stream: object = None) -> None:
        """Everything recorded has already happened."""

    def synchronize(self) -> None:
        """Everything recorded has already happened."""


class CpuStream:
    """Replaces `torch.cuda.Stream`: the only order of execution is the program's."""

    def __init__(self, *_: object, **__: object) -> None:
        """Device and priority have no meaning here."""

    def wait_stream(self, stream: object) -> None:
        """Everything submitted has already happened."""

    def wait_event(self, event: object) -> None:
        """Everything recorded has already happened."""

    def record_event(self, event: CpuEvent | None = None) -> CpuEvent:
        event = event or CpuEvent()
        event.record()
        return event

    def synchronize(self) -> None:
        """Everything submitted has already happened."""


class _CpuCuda(types.ModuleType):
    """`torch.cuda` as Megatron sees it on a CPU."""

    Stream = CpuStream
    Event = CpuEvent

    def __init__(self) -> None:
        super().__init__("torch.cuda as seen by megatron-core on a CPU")
        self.random = self

    def is_available(self) -> bool:
        return False

    def current_device(self) -> torch.device:
        return _CPU

    def device_count(self) -> int:
        return 1

    def set_device(self, device: object) -> None:
        """There is one device."""

    def synchronize(self, device: object = None) -> None:
        """Everything submitted has already happened."""

    def empty_cache(self) -> None:
        """The CPU allocator has no cache to empty."""

    def current_stream(self, device: object = None) -> CpuStream:
        return CpuStream()

    default_stream = current_stream

    def stream(self, stream: object) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    device = stream

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(state)

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def memory_allocated(self, device: object = None) -> int:
        return 0

    max_memory_allocated = memory_reserved = max_memory_reserved = memory_allocated

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cuda, name)


class CpuTorch(types.ModuleType):
    """`torch` as Megatron sees it on a CPU: factories take `device="cuda"` to mean the CPU."""

    def __init__(self) -> None:
        super().__init__("torch as seen by megatron-core on a CPU")
        self.cuda = _CpuCuda()
        for name in _FACTORIES:
            setattr(self, name, _on_cpu(getattr(torch, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def call(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if device is not None and (isinstance(device, int) or torch.device(device).type == "cuda"):
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return call
