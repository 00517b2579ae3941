"""On the device that there is, statistics and gradients of the LM head are those of a float64 softmax, by whatever kernels.

Inputs are rounded to the model's dtype first: what is compared is the arithmetic.
"""

from typing import Any

import pytest
import torch
from support.gpu import DEVICE
from torch import Tensor

from megatron_fork.vocab_parallel import TokenStatistics, VocabParallelConfig, lm_head_loss, lm_head_statistics

pytestmark = pytest.mark.gpu

TOKENS, WIDTH, PADDED, VOCABULARY, TEMPERATURE = 96, 64, 2048, 2001, 0.7
# Of the largest value. In bf16 the logits are summed in float32; a gradient tile and d_hidden are rounded to bf16.
CLOSE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
ROWS = torch.arange(TOKENS) % 3 == 1


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype)
    weight = (torch.randn(PADDED, WIDTH, generator=generator) * 3 / WIDTH**0.5).to(dtype)
    return hidden, weight, torch.randint(VOCABULARY, (TOKENS,), generator=generator)


def total(statistics: TokenStatistics, place: slice) -> tuple[Tensor, dict[str, Tensor]]:
    """A sum over rows whose coefficients are not alike."""
    rows = torch.arange(int(ROWS.sum()), device=statistics.logprob.device)[place]
    return (rows.cos() * statistics.logprob + 0.3 * rows.sin() * statistics.entropy).sum(), {}


def expected(dtype: torch.dtype) -> dict[str, Tensor]:
    hidden, weight, targets = inputs(dtype)
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    log_p = (hidden[ROWS] @ weight[:VOCABULARY].T / TEMPERATURE).log_softmax(-1)
    logprob = log_p.gather(1, targets[ROWS][:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    total(TokenStatistics(logprob, entropy), slice(None))[0].backward()
    assert hidden.grad is not None and weight.grad is not None
    return {"logprob": logprob, "entropy": entropy, "d_hidden": hidden.grad, "d_weight": weight.grad}


def close(found: dict[str, Tensor], dtype: torch.dtype) -> None:
    wanted = expected(dtype)
    for name, tensor in found.items():
        scale = wanted[name].abs().max()
        torch.testing.assert_close(
            tensor.detach().double().cpu() / scale, wanted[name] / scale, rtol=0.0, atol=CLOSE[dtype], msg=name
        )


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("into_main_gradient", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_statistics_and_gradients(kernels: Any, dtype: torch.dtype, into_main_gradient: bool, fused: bool) -> None:
    hidden, weight, targets = (tensor.to(DEVICE) for tensor in inputs(dtype))
    hidden.requires_grad_()
    weight.requires_grad_()
    # What a micro-batch before this one left there.
    main = torch.full(weight.shape, 0.25, device=DEVICE) if into_main_gradient else None
    words = {
        "rows": ROWS.to(DEVICE),
        "temperature": TEMPERATURE,
        "vocab_size": VOCABULARY,
        "config": VocabParallelConfig(kernels=kernels),
        "weight_gradient": main,
    }
    found: dict[str, Tensor] = {}
    if fused:
        lm_head_loss(hidden, weight, targets, total, **words)[0].backward()
    else:
        statistics = lm_head_statistics(hidden, weight, targets, **words)
        found |= {"logprob": statistics.logprob, "entropy": statistics.entropy}
        total(statistics, slice(None))[0].backward()
    assert hidden.grad is not None
    found["d_hidden"] = hidden.grad
    gradient = weight.grad if main is None else main - 0.25
    assert gradient is not None
    found["d_weight"] = gradient
    close(found, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_do_not_change_a_row(dtype: torch.dtype) -> None:
    hidden, weight, targets = (tensor.to(DEVICE) for tensor in inputs(dtype))
    words = {"temperature": TEMPERATURE, "vocab_size": VOCABULARY}
    whole = lm_head_statistics(hidden, weight, targets, **words)
    parts = lm_head_statistics(hidden, weight, targets, chunk_tokens=17, **words)
    torch.testing.assert_close(parts.logprob, whole.logprob, rtol=0.0, atol=2e-5)
    torch.testing.assert_close(parts.entropy, whole.entropy, rtol=0.0, atol=2e-5)
