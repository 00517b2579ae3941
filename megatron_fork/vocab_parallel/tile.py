"""Statistics and gradient of one tile of logits in torch: the reference, and the implementation for a CPU.

Design note. A tile `[tokens, columns]` is processed in blocks of rows whose scratch stays in a core's second-level cache, so
that each logit is transferred once: one read in `sweep`; one read and one write in `logits_gradient`. Operations per logit, all
in cache: `sweep` maximum, shift (with the temperature, one fused multiply-add), exponential, two sums and a product;
`logits_gradient` shift, exponential, product, and two more if the entropy has a gradient. Half-precision logits are widened a
block at a time. The scratch is kept from call to call: new pages cost as much as the arithmetic. The exponentials dominate
what is left; fusing further needs a compiled kernel (see `triton_tile`).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from megatron_fork.errors import ConfigError
from megatron_fork.vocab_parallel.config import KernelChoice

# Size of one scratch tensor for a block of rows: half a core's cache for each thread; on a GPU enough to fill it.
_BLOCK_BYTES_A_THREAD = 1 << 19
_BLOCK_BYTES_ON_GPU = 256 << 20
# e^-1e4 is 0 in every float type, and 0 * -1e4 is 0, while 0 * -inf would be NaN: exact for columns at -inf.
LOWEST_EXPONENT = -1e4


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float64 for float64 (gradient checks), otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class TileKernels(Protocol):
    """The two functions over a tile of logits."""

    def sweep(
        self,
        logits_tv: Tensor,
        column_t: Tensor,
        held_t: Tensor,
        inverse_temperature: float,
        reference_t: Tensor | None = None,
    ) -> Tensor:
        """What `shard.combine` needs of this tile's columns, in one read.

        Args:
            logits_tv: `[tokens, columns]`, any float dtype; not modified.
            column_t: int64 `[tokens]`, the target's column within the tile; any column if the tile does not have it.
            held_t: bool `[tokens]`, whether the tile holds the target.
            inverse_temperature: the logits are multiplied by it.
            reference_t: the maximum of other columns of the same tokens. It may be used as m, like any number with which
                no exponent overflows: the tile's own maximum then needs no pass.

        Returns:
            `[4, tokens]` of m, s, u and the target's logit (see `shard`), float32, or float64 for float64 logits. A NaN or
            +inf among a token's logits makes its m or s NaN; columns at -inf count as absent.

        """
        ...

    def logits_gradient(
        self,
        logits_tv: Tensor,
        column_t: Tensor,
        held_t: Tensor,
        log_z_t: Tensor,
        entropy_t: Tensor,
        logprob_gradient_t: Tensor,
        entropy_gradient_t: Tensor | None,
        inverse_temperature: float,
        out_tv: Tensor,
    ) -> Tensor:
        """Gradient of the tile's logits, in one read and one write; nothing is computed for an entropy without gradient.

        d logprob / d x_j = [j = target] - p_j and d entropy / d x_j = -p_j (ln p_j + H), so both upstream gradients enter
        as a multiple of p_j: -(g_logprob + g_entropy (ln p_j + H)) p_j.

        Args:
            logits_tv: as in `sweep`.
            column_t: as in `sweep`.
            held_t: as in `sweep`.
            log_z_t: `[tokens]`, of the whole vocabulary.
            entropy_t: `[tokens]`.
            logprob_gradient_t: `[tokens]`, upstream.
            entropy_gradient_t: `[tokens]`, upstream; None if there is none.
            inverse_temperature: as in `sweep`.
            out_tv: where to write: another tile of any float dtype, or `logits_tv` itself.

        """
        ...


class TorchKernels:
    """`TileKernels` in torch. Holds scratch, so one instance must serve one call at a time."""

    def __init__(self) -> None:
        self._scratch = Scratch()

    def sweep(
        self,
        logits_tv: Tensor,
        column_t: Tensor,
        held_t: Tensor,
        inverse_temperature: float,
        reference_t: Tensor | None = None,
    ) -> Tensor:
        tokens, columns = logits_tv.shape
        dtype = accumulation_dtype(logits_tv.dtype)
        partial_4t = torch.zeros(4, tokens, dtype=dtype, device=logits_tv.device)
        maximum_t, sum_t, weighted_t, target_t = partial_4t
        lowest = torch.finfo(dtype).min
        if columns == 0:
            maximum_t.fill_(lowest)
            return partial_4t
        chosen_t = logits_tv.gather(1, column_t[:, None])[:, 0]
        target_t.copy_(torch.where(held_t, chosen_t.to(dtype) * inverse_temperature, 0.0))
        if reference_t is not None:
            maximum_t.copy_(reference_t)
            self._add_up(logits_tv, inverse_temperature, maximum_t, sum_t, weighted_t)
            if weighted_t.isfinite().all():
                return partial_4t
        # Finite, so that a row of -inf has exponents of -inf and not NaN.
        maximum_t.copy_(logits_tv.amax(1).to(dtype).mul_(inverse_temperature).clamp_(min=lowest))
        if logits_tv.is_cuda:
            # One sum more for all is cheaper there than to wait for the answer whether a row needs it.
            self._add_up(logits_tv, inverse_temperature, maximum_t, sum_t, weighted_t, present_only=True)
            return partial_4t
        self._add_up(logits_tv, inverse_temperature, maximum_t, sum_t, weighted_t)
        if weighted_t.isnan().any():
            self._add_up(logits_tv, inverse_temperature, maximum_t, sum_t, weighted_t, present_only=True)
        return partial_4t

    def _add_up(
        self,
        logits_tv: Tensor,
        inverse_temperature: float,
        maximum_t: Tensor,
        sum_t: Tensor,
        weighted_t: Tensor,
        *,
        present_only: bool = False,
    ) -> None:
        """Both sums of all tokens; `present_only` ignores 0 * -inf in the second; a NaN logit still shows in the first."""
        shift_t1 = maximum_t.neg()[:, None]
        for block in _blocks(logits_tv):
            exponent_tv, weight_tv = self._exponentials(logits_tv[block], shift_t1[block], inverse_temperature)
            torch.sum(weight_tv, 1, out=sum_t[block])
            product_tv = weight_tv.mul_(exponent_tv)
            (torch.nansum if present_only else torch.sum)(product_tv, 1, out=weighted_t[block])

    def _exponentials(self, block_tv: Tensor, shift_t1: Tensor, inverse_temperature: float) -> tuple[Tensor, Tensor]:
        """The exponents x - m of a block and their exponentials, in scratch."""
        exponent_tv = self._scratch.take("exponent", block_tv.shape, shift_t1.dtype, block_tv.device)
        weight_tv = self._scratch.take("weight", block_tv.shape, shift_t1.dtype, block_tv.device)
        if block_tv.dtype != shift_t1.dtype:
            block_tv = exponent_tv.copy_(block_tv)
        torch.add(shift_t1, block_tv, alpha=inverse_temperature, out=exponent_tv)
        return exponent_tv, torch.exp(exponent_tv, out=weight_tv)

    def logits_gradient(
        self,
        logits_tv: Tensor,
        column_t: Tensor,
        held_t: Tensor,
        log_z_t: Tensor,
        entropy_t: Tensor,
        logprob_gradient_t: Tensor,
        entropy_gradient_t: Tensor | None,
        inverse_temperature: float,
        out_tv: Tensor,
    ) -> Tensor:
        dtype = log_z_t.dtype
        negated_t = logprob_gradient_t.to(dtype) * -inverse_temperature
        for block in _blocks(logits_tv):
            block_tv, shape = logits_tv[block], logits_tv[block].shape
            same = out_tv.dtype == dtype
            log_p_tv = out_tv[block] if same else self._scratch.take("exponent", shape, dtype, block_tv.device)
            if block_tv.dtype != dtype:
                block_tv = log_p_tv.copy_(block_tv)
            torch.add(log_z_t[block].neg()[:, None], block_tv, alpha=inverse_temperature, out=log_p_tv)
            if entropy_gradient_t is None:
                gradient_tv = log_p_tv.exp_().mul_(negated_t[block, None])
            else:
                p_tv = self._scratch.take("weight", shape, dtype, out_tv.device)
                torch.exp(log_p_tv.clamp_(min=LOWEST_EXPONENT), out=p_tv)
                slope_t = entropy_gradient_t[block].to(dtype) * -inverse_temperature
                # slope (ln p + H) - g = slope ln p + (slope H - g)
                log_p_tv.mul_(slope_t[:, None]).add_((slope_t * entropy_t[block] + negated_t[block])[:, None])
                gradient_tv = log_p_tv.mul_(p_tv)
            if shape[1]:
                own_t = negated_t[block].masked_fill(~held_t[block], 0.0).neg_()
                gradient_tv.scatter_add_(1, column_t[block, None], own_t[:, None])
            if not same:
                out_tv[block] = gradient_tv
        return out_tv


def _blocks(logits_tv: Tensor) -> Iterator[slice]:
    size = _BLOCK_BYTES_ON_GPU if logits_tv.is_cuda else _BLOCK_BYTES_A_THREAD * torch.get_num_threads()
    rows = max(1, size // (4 * max(1, logits_tv.shape[1])))
    return (slice(start, start + rows) for start in range(0, logits_tv.shape[0], rows))


class Scratch:
    """Named buffers that only grow; taking a name again returns the same memory, so only one caller may use it at a time."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A contiguous tensor with arbitrary values."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < size or held.dtype != dtype or held.device != device:
            held = self._held[name] = torch.empty(size, dtype=dtype, device=device)
        return held[:size].view(shape)

    def clear(self) -> None:
        """Give the memory back."""
        self._held.clear()


@cache  # the engine asks for every token
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def kernels_for(choice: KernelChoice, logits: Tensor) -> TileKernels:
    """The kernels for logits of this device and dtype; raises `ConfigError` if Triton is set but not installed."""
    installed = _triton_is_installed()
    # Float64 is for gradient checks; the kernels sum in float32.
    if choice == "torch" or (choice == "auto" and not (logits.is_cuda and installed)) or logits.dtype == torch.float64:
        return TorchKernels()
    if not installed:
        raise ConfigError("vocab_parallel.kernels=triton, but Triton is not installed", hint="pip install triton")
    # Imported here: Triton is optional, and takes a second to import.
    from megatron_fork.vocab_parallel import triton_tile

    return triton_tile
