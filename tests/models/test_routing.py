"""Routers: the balance loss is the sequence-wise formula wherever tokens lie, and replay sends tokens where the engine did."""

from collections.abc import Iterator

import pytest
import torch
from support.tiny_qwen3 import family_config
from torch import Tensor

from megatron_fork import distributed
from megatron_fork.distributed import compatibility
from megatron_fork.errors import RolloutError
from megatron_fork.models import ExpertsConfig, Routing, build_model
from megatron_fork.models.routing import PackedRouter

EXPERTS, TOPK, LENGTHS = 4, 2, (5, 1, 9)


@pytest.fixture
def router() -> Iterator[PackedRouter]:
    """The first layer's, of a model whose routing can still be described."""
    compatibility.install()
    distributed.initialize()
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        model = build_model(
            family_config("qwen3_moe"), layout.config, experts=ExpertsConfig(balance=0.3, replay=True)
        ).train()
        yield model.decoder.layers[0].mlp.router


def described(router: PackedRouter, order: Tensor) -> Routing:
    """Routing of three sequences whose tokens come in `order`, -1 for padding."""
    known = router.known
    lengths = torch.tensor(LENGTHS)
    known.sequence_n = torch.arange(len(LENGTHS)).repeat_interleave(lengths)
    known.length_s, known.sequences, known.balance = lengths.float(), 7, 0.0
    router.token_t = order
    return known


def balance_by_definition(hidden_nd: Tensor, weight_ed: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for part_td in hidden_nd.double().split(LENGTHS):
        probability_te = (part_td @ weight_ed.double().T).softmax(-1)
        chosen = probability_te.topk(TOPK).indices
        frequency_e = torch.bincount(chosen.flatten(), minlength=EXPERTS) / (TOPK * len(part_td))
        total = total + EXPERTS * (frequency_e * probability_te.mean(0)).sum()
    return 0.3 * total / 7


@pytest.mark.parametrize("seed", range(4))
def test_balance_loss_is_its_formula_in_any_order(router: PackedRouter, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden_nd = torch.randn(sum(LENGTHS), router.weight.shape[1], generator=generator)
    order = torch.cat([torch.randperm(sum(LENGTHS), generator=generator), torch.tensor([-1, -1, -1])])
    order = order[torch.randperm(len(order), generator=generator)]
    known = described(router, order)
    router.weight.grad = None
    weights_te, _ = router(hidden_nd[order.clamp(min=0)][:, None])
    (weights_te.sum() * 0.0).backward()
    leaf_ed = router.weight.detach().clone().requires_grad_()
    expected = balance_by_definition(hidden_nd, leaf_ed)
    (gradient_ed,) = torch.autograd.grad(expected, leaf_ed)
    assert known.balance == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(router.weight.grad, gradient_ed.float(), rtol=1e-4, atol=1e-7)


def test_no_balance_loss_without_a_gradient(router: PackedRouter) -> None:
    known = described(router, torch.arange(sum(LENGTHS)))
    hidden_nd = torch.randn(sum(LENGTHS), 1, router.weight.shape[1])
    with torch.no_grad():
        router(hidden_nd)
    router.eval()
    router(hidden_nd)
    assert known.balance == 0.0


def test_replay_takes_the_engines_experts_with_the_routers_weights(router: PackedRouter) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = sum(LENGTHS)
    chosen_nlk = torch.stack([torch.randperm(EXPERTS, generator=generator)[:TOPK] for _ in range(2 * tokens)])
    order = torch.tensor([3, -1, 0, 14, 7])
    described(router, order).chosen_nlk = chosen_nlk.unflatten(0, (tokens, 2)).to(torch.int16)
    hidden_td = torch.randn(len(order), router.weight.shape[1], generator=generator)
    weights_te, chosen_te = router(hidden_td[:, None])
    logits_te = hidden_td @ router.weight.T
    wanted_tk = chosen_nlk.unflatten(0, (tokens, 2))[order.clamp(min=0), 0]
    wanted_tk[1] = logits_te[1].topk(TOPK).indices
    for row, wanted_k in enumerate(wanted_tk):
        assert set(chosen_te[row].nonzero()[:, 0].tolist()) == set(wanted_k.tolist())
        torch.testing.assert_close(weights_te[row, wanted_k], logits_te[row, wanted_k].softmax(-1))


def test_another_models_routing_is_refused(router: PackedRouter) -> None:
    described(router, torch.arange(sum(LENGTHS))).chosen_nlk = torch.zeros(sum(LENGTHS), 2, TOPK + 1, dtype=torch.int16)
    with pytest.raises(RolloutError, match=f"reports {TOPK + 1} experts in 2 layers"):
        router(torch.randn(sum(LENGTHS), 1, router.weight.shape[1]))
