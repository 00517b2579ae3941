"""`token_statistics` gives the log-prob and entropy of a plain float64 softmax, and their gradients, and keeps little."""

import math

import pytest
import torch
from torch import Tensor

from megatron_fork.vocab_parallel import token_statistics

# Relative error of one float32 sweep over a few hundred columns, and of rounding a gradient to the input's type.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def reference(logits: Tensor, targets: Tensor, temperature: float = 1.0, vocab_size: int | None = None):
    """(logprob, entropy) in float64 by torch's own log_softmax."""
    log_p = (logits.double()[..., :vocab_size] / temperature).log_softmax(-1)
    logprob = log_p.gather(-1, targets[..., None])[..., 0]
    return logprob, -torch.where(log_p > -math.inf, log_p.exp() * log_p, 0.0).sum(-1)


def make(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, vocab_size: int | None = None):
    """(logits, targets, upstream gradients of logprob and entropy)."""
    generator = torch.Generator().manual_seed(seed)
    logits = (3.0 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)
    targets = torch.randint(0, vocab_size or shape[-1], shape[:-1], generator=generator)
    upstream = torch.randn(2, *shape[:-1], generator=generator, dtype=torch.float64)
    return logits, targets, upstream


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("vocab_size", [None, 301])
def test_values_and_gradients(dtype: torch.dtype, temperature: float, vocab_size: int | None) -> None:
    logits, targets, (of_logprob, of_entropy) = make(5, 7, 320, dtype=dtype, vocab_size=vocab_size)
    before = logits.clone()
    leaf, ours = logits.double().requires_grad_(), logits.requires_grad_()
    logprob, entropy = reference(leaf, targets, temperature, vocab_size)
    found = token_statistics(ours, targets, temperature=temperature, vocab_size=vocab_size)
    expected_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.logprob.dtype == found.entropy.dtype == expected_dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found.logprob.double(), logprob, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=tolerance, atol=tolerance)
    (logprob * of_logprob + entropy * of_entropy).sum().backward()
    (found.logprob * of_logprob.to(expected_dtype) + found.entropy * of_entropy.to(expected_dtype)).sum().backward()
    assert ours.grad.dtype == dtype
    absolute = {torch.float64: 1e-13, torch.float16: 2e-6 + 2.0**-24}.get(dtype, 2e-6)
    torch.testing.assert_close(ours.grad.double(), leaf.grad, rtol=ROUNDING[dtype], atol=absolute)
    if vocab_size:
        assert not ours.grad[..., vocab_size:].any()
    assert torch.equal(logits, before)


@pytest.mark.parametrize("wanted", ["logprob", "entropy"])
def test_each_gradient_alone(wanted: str) -> None:
    logits, targets, (upstream, _) = make(9, 40)
    leaf, ours = logits.double().requires_grad_(), logits.requires_grad_()
    (reference(leaf, targets)[wanted == "entropy"] * upstream).sum().backward()
    (getattr(token_statistics(ours, targets), wanted) * upstream.float()).sum().backward()
    torch.testing.assert_close(ours.grad.double(), leaf.grad, rtol=2e-6, atol=2e-6)


def test_numerical_gradients() -> None:
    logits, targets, _ = make(4, 11, dtype=torch.float64, vocab_size=9)
    leaf = logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: tuple(token_statistics(x, targets, temperature=0.7, vocab_size=9)), (leaf,), eps=1e-6, atol=1e-8
    )


def test_more_tokens_than_one_block() -> None:
    logits, targets, (upstream, _) = make(70, 20_000)
    leaf, ours = logits.double().requires_grad_(), logits.requires_grad_()
    logprob, entropy = reference(leaf, targets)
    found = token_statistics(ours, targets)
    torch.testing.assert_close(found.logprob.double(), logprob, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=2e-6, atol=2e-6)
    (entropy * upstream - logprob).sum().backward()
    (found.entropy * upstream.float() - found.logprob).sum().backward()
    torch.testing.assert_close(ours.grad.double(), leaf.grad, rtol=1e-5, atol=2e-6)


def test_columns_at_minus_infinity_do_not_exist() -> None:
    logits, targets, (of_logprob, of_entropy) = make(6, 30)
    targets.clamp_(max=9)
    logits[:, 10:] = -math.inf
    ours = logits.requires_grad_()
    found = token_statistics(ours, targets)
    leaf = logits.detach()[:, :10].double().requires_grad_()
    logprob, entropy = reference(leaf, targets)
    torch.testing.assert_close(found.logprob.double(), logprob, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=2e-6, atol=2e-6)
    (logprob * of_logprob + entropy * of_entropy).sum().backward()
    (found.logprob * of_logprob.float() + found.entropy * of_entropy.float()).sum().backward()
    torch.testing.assert_close(ours.grad[:, :10].double(), leaf.grad, rtol=2e-6, atol=2e-6)
    assert not ours.grad[:, 10:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_far_logits_stay_finite(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, -1e4], [1e4, 1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    found = token_statistics(logits, torch.tensor([0, 1]))
    assert found.logprob.tolist() == pytest.approx([0.0, -math.log(2)], rel=1e-7, abs=1e-7)
    assert found.entropy.tolist() == pytest.approx([0.0, math.log(2)], rel=1e-6, abs=1e-7)
    (found.logprob + found.entropy).sum().backward()
    # Backward has log Z in float32, whose resolution at 1e4 is 2^-10: so much may p be off, relatively.
    expected = torch.tensor([[0.0, 0.0, 0.0, 0.0], [-0.5, 0.5, 0.0, 0.0]])
    torch.testing.assert_close(logits.grad.float(), expected, rtol=2**-10, atol=0.0)


def test_one_hot_and_uniform_rows() -> None:
    one_hot = torch.full((1, 1000), -200.0).index_fill_(1, torch.tensor([17]), 0.0)
    found = token_statistics(torch.cat([one_hot, torch.full((1, 1000), 3.25)]), torch.tensor([17, 999]))
    assert found.logprob.tolist() == pytest.approx([0.0, -math.log(1000)], rel=1e-6, abs=0.0)
    assert found.entropy.tolist() == pytest.approx([0.0, math.log(1000)], rel=1e-6, abs=0.0)


def test_non_contiguous_input() -> None:
    logits, targets, _ = make(6, 8, 12)
    expected = token_statistics(logits.transpose(0, 1)[:, ::2].contiguous(), targets.T[:, ::2].contiguous())
    view = logits.transpose(0, 1)[:, ::2].requires_grad_()
    found = token_statistics(view, targets.T[:, ::2])
    assert torch.equal(found.logprob, expected.logprob)
    assert torch.equal(found.entropy, expected.entropy)
    assert found.logprob.shape == (8, 3)


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_no_tokens(shape: tuple[int, ...]) -> None:
    logits = torch.zeros(*shape, 16, requires_grad=True)
    found = token_statistics(logits, torch.zeros(shape, dtype=torch.long))
    assert found.logprob.shape == found.entropy.shape == shape
    (found.logprob.sum() + found.entropy.sum()).backward()
    assert logits.grad.shape == (*shape, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_the_logits_and_a_few_numbers_a_token(dtype: torch.dtype) -> None:
    logits, targets, _ = make(64, 500, dtype=dtype)
    leaf = logits.requires_grad_()
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_statistics(leaf, targets)
    storages = {tensor.untyped_storage().data_ptr() for tensor in saved}
    own = {leaf.untyped_storage().data_ptr(), targets.untyped_storage().data_ptr()}
    assert leaf.untyped_storage().data_ptr() in storages
    extra = [tensor for tensor in saved if tensor.untyped_storage().data_ptr() not in own]
    # Two floats a token, views of at most four: no softmax is kept.
    assert sum(tensor.numel() for tensor in extra) <= 2 * 64
    assert sum(tensor.untyped_storage().nbytes() for tensor in extra) <= 2 * 64 * 4 * 4
