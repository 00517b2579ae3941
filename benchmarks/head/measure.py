"""Seconds, memory, and what machine they were measured on."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_INSTRUCTION_SETS = "avx2 avx512f avx512_vnni avx512_bf16 amx_bf16".split()
_PACKAGES = "torch megatron-core transformers verl trl liger-kernel triton".split()


def timed(function: Callable[[], Any], device: str) -> tuple[float, float]:
    """Wall seconds and processor seconds of this process and its threads; all ranks start together."""
    # Or the next contender would find pages ready that the last one left.
    _return_free_memory()
    dist.barrier()
    _finish(device)
    wall, processor = time.perf_counter(), _processor_seconds()
    result = function()
    _finish(device)
    seconds = time.perf_counter() - wall, _processor_seconds() - processor
    del result
    return seconds


def peak_mebibytes(function: Callable[[], Any], device: str) -> float:
    """Most memory that `function`, its result included, holds over what is held now."""
    # Freed pages that the allocator still keeps would hide as many new ones.
    _return_free_memory()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        result = function()
        torch.cuda.synchronize()
        del result
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # makes the high-water mark what is resident now
    held_kib = _status_kib("VmRSS")
    result = function()
    peak_kib = _status_kib("VmHWM")
    del result
    return (peak_kib - held_kib) / 1024


def machine(device: str) -> dict[str, Any]:
    """What a figure of this run depends on besides the code."""
    cpu_lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    cpu = {name.strip(): value.strip() for name, value in cpu_lines}
    flags = cpu.get("flags", "").split()
    return {
        "cpu": cpu.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "threads": {"one rank": torch.get_num_threads(), "each of several ranks": 1},
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "packages": versions(),
    }


def versions() -> dict[str, str]:
    """Installed versions of torch and the peers."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _return_free_memory() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _processor_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}: memory is measured on Linux only")
