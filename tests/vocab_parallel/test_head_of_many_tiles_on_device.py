"""The LM head over several tiles and chunks on the device that there is: float64's results, and no race between its streams.

On a GPU these are cuBLAS's products, compiled kernels and a second stream. What a stream reads or overwrites too early changes
results from one time to the next: with one stream and with two, and again and again, they are the same bit for bit.
"""

from typing import Any

import pytest
import torch
from support.gpu import DEVICE
from torch import Tensor

from megatron_fork.vocab_parallel import TokenStatistics, VocabParallelConfig, lm_head_loss, lm_head_statistics

pytestmark = pytest.mark.gpu

TOKENS, WIDTH, VOCABULARY = (700, 512, 100_003) if DEVICE == "cuda" else (60, 32, 5003)
CHUNKS = [None, 200 if DEVICE == "cuda" else 17]


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight with padding, targets, flags of the rows."""
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator)
    weight = torch.randn(VOCABULARY + 61, WIDTH, generator=generator) * 3 / WIDTH**0.5
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    return (
        hidden.to(DEVICE, dtype),
        weight.to(DEVICE, dtype),
        targets.to(DEVICE),
        (torch.arange(TOKENS) % 5 != 2).to(DEVICE),
    )


def loss_of(statistics: TokenStatistics, place: slice) -> tuple[Tensor, dict[str, Tensor]]:
    rows = torch.arange(TOKENS, device=DEVICE)[place]
    return (rows.cos() * statistics.logprob + 0.1 * rows.sin() * statistics.entropy.square()).sum(), {}


def found(
    dtype: torch.dtype, *, fused: bool, into_buffer: bool, chunk_tokens: int | None, **settings: Any
) -> list[Tensor]:
    """Loss, d_hidden, d_weight for an upstream gradient of 0.3."""
    hidden, weight, targets, rows = inputs(dtype)
    hidden.requires_grad_(), weight.requires_grad_()
    buffer = torch.zeros(weight.shape, device=DEVICE) if into_buffer else None
    words: dict[str, Any] = {
        "rows": rows,
        "vocab_size": VOCABULARY,
        "chunk_tokens": chunk_tokens,
        "config": VocabParallelConfig(**settings),
        "weight_gradient": buffer,
    }
    if fused:
        loss, _ = lm_head_loss(hidden, weight, targets, loss_of, **words)
    else:
        chosen = int(rows.sum())
        loss, _ = loss_of(lm_head_statistics(hidden, weight, targets, **words), slice(0, chosen))
    (0.3 * loss).backward()
    assert hidden.grad is not None and weight.grad is not None
    return [loss.detach(), hidden.grad, weight.grad if buffer is None else buffer]


def expected(dtype: torch.dtype) -> list[Tensor]:
    hidden, weight, targets, rows = inputs(dtype)
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    log_p = (hidden[rows] @ weight[:VOCABULARY].T).log_softmax(1)
    logprob = log_p.gather(1, targets[rows, None])[:, 0]
    loss, _ = loss_of(TokenStatistics(logprob, -(log_p.exp() * log_p).sum(1)), slice(0, int(rows.sum())))
    return [loss.detach(), *torch.autograd.grad(0.3 * loss, (hidden, weight))]


@pytest.mark.parametrize("chunk_tokens", CHUNKS)
@pytest.mark.parametrize("into_buffer", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_as_float64_and_without_races(fused: bool, into_buffer: bool, chunk_tokens: int | None) -> None:
    words: dict[str, Any] = {"fused": fused, "into_buffer": into_buffer, "chunk_tokens": chunk_tokens}
    first = found(torch.bfloat16, second_stream=False, **words)
    torch.testing.assert_close(first[0].double(), expected(torch.bfloat16)[0], rtol=1e-4, atol=1e-3)
    for result, right in zip(first[1:], expected(torch.bfloat16)[1:], strict=True):
        assert (result.double() - right).norm() < 6e-3 * right.norm()
    for _ in range(5 if DEVICE == "cuda" else 1):
        for result, before in zip(found(torch.bfloat16, second_stream=True, **words), first, strict=True):
            assert torch.equal(result, before)


@pytest.mark.parametrize("fused", [True, False])
def test_an_fp32_head_keeps_the_gradient_of_the_logits_whole(fused: bool) -> None:
    """In TensorFloat-32 on a GPU, whose 11 bits hold a bfloat16 as it is; what a GPU's torch allows elsewhere stays."""
    before = torch.backends.cuda.matmul.allow_tf32
    _, _, d_weight = found(torch.bfloat16, fused=fused, into_buffer=True, chunk_tokens=None, fp32_head=True)
    right = expected(torch.bfloat16)[2]
    assert (d_weight.double() - right).norm() < 6e-4 * right.norm()
    assert torch.backends.cuda.matmul.allow_tf32 == before
