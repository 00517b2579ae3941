"""`lm_head_statistics` equals `token_statistics` of the full logits at the chosen rows, values and gradients."""

import pytest
import torch
from torch import Tensor

from megatron_fork.vocab_parallel import lm_head_statistics, token_statistics

TOKENS, WIDTH, VOCABULARY = 23, 12, 40
ROWS = {
    "all": None,
    "flags": torch.arange(TOKENS) % 3 == 1,
    "indices": torch.tensor([20, 3, 4, 11]),
    "no flags": torch.zeros(TOKENS, dtype=torch.bool),
    "no indices": torch.zeros(0, dtype=torch.long),
}


def make(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, 37, (TOKENS,), generator=generator)


def gradients(statistics, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    places = torch.arange(statistics.logprob.numel(), dtype=statistics.logprob.dtype)
    total = (statistics.logprob * (1 + places)).sum() + (statistics.entropy * (places.cos() - 2)).sum()
    return torch.autograd.grad(total, (hidden, weight))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("chunk_tokens", [None, 1, 3, 100])
@pytest.mark.parametrize("vocab_size", [None, 37])
def test_equals_the_full_logits(rows: str, chunk_tokens: int | None, vocab_size: int | None) -> None:
    hidden, weight, targets = make()
    chosen = slice(None) if ROWS[rows] is None else ROWS[rows]
    expected = token_statistics((hidden @ weight.T)[chosen], targets[chosen], temperature=0.7, vocab_size=vocab_size)
    found = lm_head_statistics(
        hidden,
        weight,
        targets,
        rows=ROWS[rows],
        temperature=0.7,
        vocab_size=vocab_size,
        **({} if chunk_tokens is None else {"chunk_tokens": chunk_tokens}),
    )
    torch.testing.assert_close(found.logprob, expected.logprob, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.entropy, expected.entropy, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(found, hidden, weight), gradients(expected, hidden, weight), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_repeated_rows_add_up() -> None:
    hidden, weight, targets = make()
    rows = torch.tensor([5, 5, 2])
    found = lm_head_statistics(hidden, weight, targets, rows=rows)
    (gradient,) = torch.autograd.grad(found.logprob.sum(), hidden)
    once = lm_head_statistics(hidden, weight, targets, rows=torch.tensor([5, 2]))
    (expected,) = torch.autograd.grad((once.logprob * torch.tensor([2.0, 1.0])).sum(), hidden)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("wanted", ["logprob", "entropy"])
def test_each_gradient_alone(wanted: str) -> None:
    hidden, weight, targets = make()
    found = getattr(lm_head_statistics(hidden, weight, targets, chunk_tokens=5), wanted).sum()
    expected = getattr(token_statistics(hidden @ weight.T, targets), wanted).sum()
    for ours, theirs in zip(
        torch.autograd.grad(found, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_bfloat16_is_summed_in_float32() -> None:
    hidden, weight, targets = make(torch.bfloat16)
    found = lm_head_statistics(hidden, weight, targets, chunk_tokens=4)
    exact_hidden, exact_weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    exact = token_statistics(exact_hidden @ exact_weight.T, targets)
    assert found.logprob.dtype == found.entropy.dtype == torch.float32
    tolerance = 5e-6  # on every CPU, also where it has instructions for bfloat16
    torch.testing.assert_close(found.logprob.double(), exact.logprob, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.entropy.double(), exact.entropy, rtol=tolerance, atol=tolerance)
    d_hidden, d_weight = gradients(found, hidden, weight)
    assert d_hidden.dtype == d_weight.dtype == torch.bfloat16
    expected = gradients(exact, exact_hidden, exact_weight)
    for ours, theirs in zip((d_hidden, d_weight), expected, strict=True):
        assert (ours.double() - theirs).norm() < 0.002 * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_the_chosen_hidden_states_and_a_few_numbers_a_row(dtype: torch.dtype) -> None:
    hidden, weight, targets = make(dtype)
    rows = torch.arange(0, TOKENS, 3)
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lm_head_statistics(hidden, weight, targets, rows=rows)
    given = {tensor.untyped_storage().data_ptr() for tensor in (hidden, weight, targets, rows)}
    extra = sum(size for storage, size in saved.items() if storage not in given)
    # The rows' hidden states and targets, and views of at most four float32 numbers a row.
    assert extra <= rows.numel() * (WIDTH * hidden.element_size() + 8 + 4 * 4)


def test_no_logits_of_all_tokens_ever_live() -> None:
    hidden, weight, targets = make(torch.float32)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if torch.is_tensor(tensor):
                    largest = max(largest, tensor.numel())
            return result

    with Watch():
        found = lm_head_statistics(hidden, weight, targets, chunk_tokens=2)
        found.logprob.sum().backward()
    assert largest == VOCABULARY * WIDTH < TOKENS * VOCABULARY
