"""`lm_head_loss` is `lm_head_statistics` followed by the loss: the same value and gradients, for any chunks, in one pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megatron_fork import objective
from megatron_fork.vocab_parallel import TokenStatistics, VocabParallelConfig, lm_head_loss, lm_head_statistics

TOKENS, WIDTH, VOCABULARY = 31, 12, 45


def make(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    return hidden, weight, targets, torch.arange(TOKENS) % 4 != 2


def policy_loss(statistics: TokenStatistics, place: slice) -> tuple[Tensor, dict[str, Tensor]]:
    """A clipped loss with an entropy bonus, whose coefficients depend on the log-probs."""
    places = torch.arange(TOKENS)[place]
    loss, sums = objective.policy_loss(
        statistics.logprob,
        (statistics.logprob + 0.3 * places.sin()).detach(),
        places.cos().to(statistics.logprob.dtype),
        torch.ones_like(places, dtype=torch.bool),
        objective.ObjectiveConfig(entropy_coef=0.1),
        normalizer=7.0,
        entropy=statistics.entropy,
    )
    return loss, sums


@pytest.mark.parametrize("chunk_tokens", [None, 1, 5, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_equals_statistics_then_loss(chunk_tokens: int | None, temperature: float) -> None:
    hidden, weight, targets, rows = make()
    options = {"rows": rows, "temperature": temperature, "vocab_size": VOCABULARY - 2}
    targets = targets.clamp(max=VOCABULARY - 3)
    # Places within the rows, not within the tokens.
    chosen = int(rows.sum())
    expected, expected_sums = policy_loss(lm_head_statistics(hidden, weight, targets, **options), slice(0, chosen))
    found, sums = lm_head_loss(hidden, weight, targets, policy_loss, chunk_tokens=chunk_tokens, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert sums.keys() == expected_sums.keys()
    for name, value in sums.items():
        assert not value.requires_grad
        torch.testing.assert_close(value.double(), expected_sums[name].double(), rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(3 * found, (hidden, weight)),
        torch.autograd.grad(3 * expected, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def count_products(work: Callable[[], object]) -> int:
    products = 0

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal products
            products += "mm" in str(function)
            return function(*args, **(kwargs or {}))

    with Count():
        work()
    return products


@pytest.mark.parametrize("chunk_tokens", [None, 8])
def test_three_products_for_a_row_in_all(chunk_tokens: int | None) -> None:
    hidden, weight, targets, rows = make(torch.float32)
    chunks = 1 if chunk_tokens is None else -(-int(rows.sum()) // chunk_tokens)

    def loss() -> Tensor:
        return lm_head_loss(hidden, weight, targets, policy_loss, rows=rows, chunk_tokens=chunk_tokens)[0]

    # Logits, d_hidden, d_weight: the last two of the last chunk in backward.
    found = []
    assert count_products(lambda: found.append(loss())) == 3 * chunks - 2
    assert count_products(found[0].backward) == 2
    with torch.no_grad():
        assert count_products(loss) == chunks


@pytest.mark.parametrize("fused", [True, False])
def test_megatrons_gradient_takes_the_sum_in_float32(fused: bool) -> None:
    hidden, weight, targets, rows = make(torch.bfloat16)
    kept = torch.full((VOCABULARY, WIDTH), 2.0)
    options = {"rows": rows, "weight_gradient": kept}
    if fused:
        loss, _ = lm_head_loss(hidden, weight, targets, policy_loss, **options)
    else:
        loss, _ = policy_loss(lm_head_statistics(hidden, weight, targets, **options), slice(0, int(rows.sum())))
    (2 * loss).backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected, _ = lm_head_loss(*exact, targets, policy_loss, rows=rows)
    _, of_weight = torch.autograd.grad(2 * expected, exact)
    assert weight.grad is not None and not weight.grad.any()  # autograd's share is nothing; the buffer has it all
    assert (kept - 2.0 - of_weight).norm() < 2e-3 * of_weight.norm()


def test_no_rows_give_a_loss_of_nothing() -> None:
    hidden, weight, targets, rows = make(torch.float32)
    loss, sums = lm_head_loss(hidden, weight, targets, policy_loss, rows=rows & False)
    assert loss == 0.0 and sums["tokens"] == 0.0
    loss.backward()
    assert not hidden.grad.any() and not weight.grad.any()


def test_a_loss_without_gradient_gives_zeros() -> None:
    hidden, weight, targets, _ = make(torch.float32)
    loss, _ = lm_head_loss(hidden, weight, targets, lambda part, _: (part.logprob.detach().sum(), {}))
    loss.backward()
    assert not hidden.grad.any() and not weight.grad.any()


def test_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, targets, rows = make()
    expected, _ = lm_head_loss(hidden, weight, targets, policy_loss, rows=rows)
    (of_hidden,) = torch.autograd.grad(expected, hidden)
    loss, _ = lm_head_loss(hidden, weight.detach(), targets, policy_loss, rows=rows)
    loss.backward()
    torch.testing.assert_close(hidden.grad, of_hidden)


def test_chunks_fit_the_memory_that_the_config_allows() -> None:
    hidden = torch.zeros(3000, 4)
    weight = torch.zeros(1 << 15, 4)
    seen = []

    def count(part: TokenStatistics, place: slice) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(place.stop - place.start)
        return part.logprob.sum(), {}

    with torch.no_grad():
        lm_head_loss(
            hidden, weight, torch.zeros(3000, dtype=torch.long), count, config=VocabParallelConfig(chunk_mib=16)
        )
    assert sum(seen) == 3000 and max(seen) <= (16 << 20) // (4 << 15) < max(seen) + 10
