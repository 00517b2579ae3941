"""Tiles for the Triton kernels, and the sums and gradients of a float64 softmax that they are held to.

Without a GPU the kernels run in Triton's interpreter, on small blocks; with one they are compiled, tuned and run there.
"""

import math
import os
import sys

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # Triton decides when it is imported whether its functions are interpreted, and megatron-core imports it if it can.
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip(
            "no GPU, and Triton is already imported without its interpreter: set TRITON_INTERPRET=1 for the whole run, "
            "or run this file alone",
            allow_module_level=True,
        )
    os.environ.setdefault("TRITON_INTERPRET", "1")
triton = pytest.importorskip("triton", reason="Triton is not installed")

from megatron_fork.vocab_parallel import triton_tile  # noqa: E402

SPLIT = triton_tile.SPLIT_COLUMNS
# Relative error of a gradient from rounding it to its type; the interpreter cuts a float32 off to bfloat16.
ROUNDING = {torch.float32: 4e-6, torch.float16: 2**-10, torch.bfloat16: 2**-8 if DEVICE == "cuda" else 2**-7}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(tokens: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 3.0):
    """(logits, target columns, whether each is held)."""
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(tokens, columns, generator=generator, dtype=torch.float64)).to(dtype)
    column = torch.randint(0, columns, (tokens,), generator=generator)
    return logits.to(DEVICE), column.to(DEVICE), (torch.arange(tokens) % 3 != 1).to(DEVICE)


def apart(tile_tv: Tensor, gap: int, between: float = 7.0) -> Tensor:
    """The same tile with `gap` columns of a number between its rows."""
    wide = torch.full((tile_tv.shape[0], tile_tv.shape[1] + gap), between, dtype=tile_tv.dtype, device=tile_tv.device)
    wide[:, : tile_tv.shape[1]] = tile_tv
    return wide[:, : tile_tv.shape[1]]


def sums(logits: Tensor, column: Tensor, held: Tensor, inverse_temperature: float = 1.0) -> Tensor:
    """`[4, tokens]` in float64, by the definitions."""
    x = logits.double() * inverse_temperature
    maximum = x.amax(1)
    exponent = x - maximum.masked_fill(maximum == -math.inf, 0.0)[:, None]
    weight = exponent.exp()
    weighted = torch.where(exponent == -math.inf, 0.0, weight * exponent).sum(1)
    target = torch.where(held, x.gather(1, column[:, None])[:, 0], 0.0)
    return torch.stack([maximum, weight.sum(1), weighted, target])


def check_sweep(logits: Tensor, column: Tensor, held: Tensor, inverse_temperature: float = 1.0) -> Tensor:
    before = logits.clone()
    found = triton_tile.sweep(logits, column, held, inverse_temperature)
    assert found.shape == (4, logits.shape[0])
    assert found.dtype == torch.float32
    assert torch.equal(logits, before)
    torch.testing.assert_close(found.double(), sums(logits, column, held, inverse_temperature), rtol=4e-6, atol=1e-6)
    return found


class Backward:
    """The gradient of a tile that holds the first columns of a vocabulary, others having the rest, by autograd in float64."""

    def __init__(
        self, logits: Tensor, column: Tensor, held: Tensor, inverse_temperature: float, of_entropy: bool
    ) -> None:
        tokens, columns = logits.shape
        elsewhere, _, _ = make(tokens, 50, torch.float64, seed=1)
        leaf = logits.double().requires_grad_()
        log_p = (torch.cat([leaf, elsewhere], 1) * inverse_temperature).log_softmax(1)
        entropy = -(log_p.exp() * log_p.clamp(min=-1e4)).sum(1)
        logprob = log_p.gather(1, torch.where(held, column, columns)[:, None])[:, 0]
        generator = torch.Generator().manual_seed(2)
        upstream = torch.randn(2, tokens, generator=generator).to(DEVICE)
        (upstream[0] * logprob + (upstream[1] * entropy if of_entropy else 0.0)).sum().backward()
        assert leaf.grad is not None
        self.expected = leaf.grad
        x = torch.cat([leaf, elsewhere], 1).detach() * inverse_temperature
        self.given = (
            column,
            held,
            x.logsumexp(1).float(),
            entropy.detach().float(),
            upstream[0],
            upstream[1] if of_entropy else None,
            inverse_temperature,
        )

    def check(self, found: Tensor, absolute: float = 2e-6) -> None:
        absolute += 2.0**-24 if found.dtype == torch.float16 else 0.0
        torch.testing.assert_close(found.double(), self.expected, rtol=ROUNDING[found.dtype], atol=absolute)
