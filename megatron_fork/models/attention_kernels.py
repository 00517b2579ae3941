"""Kernels of causal attention over the sequences of a packed row, in one table; `attention` runs them.

           what runs                                         calls a layer        types      needs
    flash  flash-attn's variable-length kernel, 3 before 2   one                  16 bits    a GPU, the package
    varlen torch's, of FlashAttention 2                      one                  16 bits    a GPU, torch.nn.attention.varlen
    sdpa   torch's scaled-dot-product kernels                one a group of       any        nothing
                                                             similar lengths

`auto` takes the first that this machine and the model's dtype have. All keep queries, keys, values, the result and a float a
head and token for backward, and none a matrix of scores. The gradients of flash and varlen depend in their last bits on the
order in which blocks are added; torch's own follows `torch.use_deterministic_algorithms`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_fork.distributed import versions
from megatron_fork.errors import ConfigError
from megatron_fork.models.config import AttentionKernel, ComputeConfig
from megatron_fork.models.fields import shown

if TYPE_CHECKING:
    from megatron_fork.models.layers.packed_row import PackedRow

# The widest head of FlashAttention 2 and 3.
_WIDEST_HEAD = 256


@dataclass(frozen=True)
class ChosenAttention:
    """The kernel, and the reason."""

    kernel: AttentionKernel
    reason: str


@dataclass(frozen=True)
class _Kernel:
    """What a kernel for all sequences at once needs of the machine, and how it is called."""

    package: Callable[[], str]
    """Why it cannot be imported; empty if it can."""
    attend: Callable[[Tensor, Tensor, Tensor, PackedRow, float | None], Tensor]
    """Queries `[tokens, heads, d]`, keys and values, the row, and the factor of the scores; gives a tensor like the queries."""


def choose_attention(config: ComputeConfig, dtype: torch.dtype, head_width: int = 0) -> ChosenAttention:
    """The kernel that `config.attention` means on this machine; raises `ConfigError` if it does not have it.

    Without the model, `head_width` is 0.
    """
    if config.attention == "sdpa":
        return ChosenAttention("sdpa", "compute.attention=sdpa")
    lacking = {name: _lacking(kernel, dtype, head_width) for name, kernel in ONE_CALL.items()}
    if config.attention == "auto":
        for name, why_not in lacking.items():
            if not why_not:
                passed_over = "".join(f"; not {other}: {why}" for other, why in lacking.items() if why)
                return ChosenAttention(name, f"one call for all sequences{passed_over}")
        reasons = dict.fromkeys(lacking.values())  # the same one once
        return ChosenAttention("sdpa", "; ".join(reasons))
    if lacking[config.attention]:
        raise ConfigError(
            f"compute.attention={config.attention} cannot run: {lacking[config.attention]}",
            hint="set compute.attention=auto, which takes the best kernel that there is",
        )
    return ChosenAttention(config.attention, f"compute.attention={config.attention}")


def _lacking(kernel: _Kernel, dtype: torch.dtype, head_width: int) -> str:
    if not torch.cuda.is_available():
        return "no GPU is visible"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"its types have 16 bits, policy.precision is {str(dtype).removeprefix('torch.')}"
    if head_width > _WIDEST_HEAD:
        return f"the model's heads are {head_width} wide, its widest {_WIDEST_HEAD}"
    return kernel.package()


def _no_varlen() -> str:
    found, wanted = versions.varlen_attention_takes(), {"scale", "window_size"}
    return "" if wanted <= found else "this torch has no torch.nn.attention.varlen with a scale and a window: 2.11 has"


def attend_with_varlen(query: Tensor, key: Tensor, value: Tensor, row: PackedRow, scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # Torch 2.11 takes grouped queries unasked, 2.13 wants to be told.
    grouped: dict[str, Any] = (
        {"enable_gqa": query.shape[1] != key.shape[1]} if "enable_gqa" in versions.varlen_attention_takes() else {}
    )
    edges, longest = row.cu_seqlens_q, row.max_seqlen_q
    attended = varlen_attn(
        query, key, value, edges, edges, longest, longest, scale=scale, window_size=(-1, 0), **grouped
    )
    assert isinstance(attended, Tensor), "only the log mass, which is not asked for, would make it a tuple"
    return attended


_FLASH = ("flash_attn_interface", "flash_attn")


def _no_flash() -> str:
    return _flash_function()[1]


@functools.cache
def _flash_function() -> tuple[Callable[..., Any] | None, str]:
    """The newest variable-length function that imports, or why there is none."""
    reasons = []
    for package in _FLASH:
        if importlib.util.find_spec(package) is None:
            continue
        try:
            return importlib.import_module(package).flash_attn_varlen_func, ""
        except Exception as error:  # a broken installation may raise anything
            reasons.append(f"{package} is installed but cannot be imported: {shown(error) or type(error).__name__}")
    return None, "; ".join(reasons) or "the package flash-attn is not installed"


def attend_with_flash(query: Tensor, key: Tensor, value: Tensor, row: PackedRow, scale: float | None) -> Tensor:
    function, why_not = _flash_function()
    assert function is not None, why_not
    edges, longest = row.cu_seqlens_q, row.max_seqlen_q
    found = function(query, key, value, edges, edges, longest, longest, softmax_scale=scale, causal=True)
    # Some versions of FlashAttention 3 return the log mass as well.
    attended: Tensor = found[0] if isinstance(found, tuple) else found
    return attended


# In the order in which `auto` prefers them.
ONE_CALL: dict[AttentionKernel, _Kernel] = {
    "flash": _Kernel(_no_flash, attend_with_flash),
    "varlen": _Kernel(_no_varlen, attend_with_varlen),
}
