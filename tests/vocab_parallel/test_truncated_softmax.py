"""Log-prob and entropy under the softmax over kept sets are those of the definition, on shards too, with their gradients."""

import math

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ranks import run_on_ranks
from torch import Tensor

from megatron_fork.errors import StatisticsError
from megatron_fork.vocab_parallel import (
    KeptSets,
    ReplayedStatistics,
    lm_head_statistics,
    replayed_statistics,
    truncated_statistics,
)

WIDTH, VOCABULARY, TEMPERATURE = 6, 29, 0.7


def sets_of(lists: list[list[int]]) -> KeptSets:
    ids = torch.tensor([token for each in lists for token in each], dtype=torch.long)
    return KeptSets(ids, torch.tensor([len(each) for each in lists], dtype=torch.long))


def made(
    seed: int, rows: int, *, padded: int = 0, whole: bool = True
) -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
    """Hidden states, a weight with `padded` rows past the vocabulary, targets, and sets of 1 to all tokens; some are empty."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(VOCABULARY + padded, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    lists = []
    for row in range(rows):
        count = int(torch.randint(1, VOCABULARY + 1, (), generator=generator)) if row % 3 else 1 + row % 4
        lists.append(torch.randperm(VOCABULARY, generator=generator)[:count].tolist())
    targets = torch.tensor([each[len(each) // 2] for each in lists], dtype=torch.long)
    if whole:
        lists = [[] if row % 5 == 3 else each for row, each in enumerate(lists)]
    return hidden, weight, targets, lists


def by_definition(hidden: Tensor, weight: Tensor, targets: Tensor, lists: list[list[int]]) -> ReplayedStatistics:
    logprob, entropy, kept_entropy = [], [], []
    for hidden_d, target, kept in zip(hidden, targets.tolist(), lists, strict=True):
        logits = weight[:VOCABULARY] @ hidden_d / TEMPERATURE
        everything = logits.log_softmax(0)
        left = logits[kept].log_softmax(0) if kept else everything
        logprob.append(left[kept.index(target) if kept else target])
        entropy.append(-(everything.exp() * everything).sum())
        kept_entropy.append(-(left.exp() * left).sum())
    return ReplayedStatistics(*map(torch.stack, (logprob, entropy, kept_entropy)))


def mixed(statistics: ReplayedStatistics) -> Tensor:
    places = torch.arange(len(statistics.logprob), dtype=torch.float64)
    weights = (1 + places, places.cos() - 2, places.sin() + 0.5)
    return sum(((weight * each).sum() for weight, each in zip(weights, statistics, strict=True)), torch.zeros(()))


@pytest.mark.parametrize("whole", [True, False], ids=["some keep everything", "all are cut"])
@pytest.mark.parametrize("seed", range(3))
def test_is_the_definition(seed: int, whole: bool) -> None:
    hidden, weight, targets, lists = made(seed, 13, padded=3, whole=whole)
    found = replayed_statistics(hidden, weight, targets, sets_of(lists), temperature=TEMPERATURE, vocab_size=VOCABULARY)
    expected = by_definition(hidden, weight, targets, lists)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(mixed(found), (hidden, weight))
    for gradient, wanted in zip(ours, torch.autograd.grad(mixed(expected), (hidden, weight)), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-12)


def test_gradcheck() -> None:
    hidden, weight, targets, lists = made(7, 6)
    kept = sets_of(lists)
    assert torch.autograd.gradcheck(
        lambda hidden, weight: tuple(replayed_statistics(hidden, weight, targets, kept)), (hidden, weight)
    )


def test_without_a_gradient_of_the_entropy_nothing_runs_through_the_whole_vocabulary() -> None:
    hidden, weight, targets, lists = made(2, 8, whole=False)
    found = replayed_statistics(hidden, weight, targets, sets_of(lists))
    kept = {token for each in lists for token in each}
    (gradient,) = torch.autograd.grad(found.logprob.sum(), weight)
    names = [node[0].name() for node in found.logprob.grad_fn.next_functions if node[0] is not None]
    assert found.logprob.grad_fn.name() == "_TruncatedBackward" and "_LmHeadStatisticsBackward" not in names
    assert {int(row) for row in gradient.abs().sum(1).nonzero()} <= kept


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=12), st.data())
def test_sets_are_taken_row_by_row(counts: list[int], data: st.DataObject) -> None:
    lists = [[row * 100 + place for place in range(count)] for row, count in enumerate(counts)]
    index = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=20))
    taken = sets_of(lists).take(torch.tensor(index, dtype=torch.long))
    assert taken.count_t.tolist() == [counts[row] for row in index]
    assert taken.id_n.tolist() == [token for row in index for token in lists[row]]


def test_rows_are_chosen_and_may_be_none() -> None:
    hidden, weight, targets, lists = made(4, 10)
    rows = torch.tensor([8, 3, 1])
    kept = sets_of(lists).take(rows)
    found = replayed_statistics(hidden, weight, targets, kept, rows=rows, temperature=TEMPERATURE)
    expected = by_definition(hidden[rows], weight, targets[rows], [lists[row] for row in rows.tolist()])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    nothing = replayed_statistics(hidden, weight, targets, sets_of([]), rows=torch.zeros(10, dtype=torch.bool))
    gradient = torch.autograd.grad(nothing.logprob.sum() + nothing.entropy.sum(), weight)[0]
    assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_set_of_all_tokens_is_the_whole_softmax(dtype: torch.dtype) -> None:
    hidden, weight, targets, _ = made(5, 9)
    hidden, weight = hidden.detach().to(dtype).requires_grad_(), weight.detach().to(dtype).requires_grad_()
    everything = sets_of([list(range(VOCABULARY))] * 9)
    found = truncated_statistics(hidden, weight, targets, everything, temperature=TEMPERATURE)
    expected = lm_head_statistics(hidden, weight, targets, temperature=TEMPERATURE)
    assert found.logprob.dtype == torch.float32
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(found.logprob.sum() + found.entropy.sum(), (hidden, weight))
    theirs = torch.autograd.grad(expected.logprob.sum() + expected.entropy.sum(), (hidden, weight))
    for gradient, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, wanted, **tolerance)


def test_the_gradient_of_the_weight_goes_into_its_buffer() -> None:
    hidden, weight, targets, lists = made(6, 9, whole=False)
    buffer = torch.ones(weight.shape, dtype=torch.float64)
    found = truncated_statistics(hidden, weight, targets, sets_of(lists), weight_gradient=buffer)
    found.logprob.sum().backward()
    assert weight.grad is not None and not weight.grad.any()
    other = weight.detach().requires_grad_()
    truncated_statistics(hidden.detach(), other, targets, sets_of(lists)).logprob.sum().backward()
    torch.testing.assert_close(buffer - 1.0, other.grad)


def on_ranks(rank: int, ranks: int, seed: int) -> dict[str, Tensor]:
    columns = -(-VOCABULARY // ranks) + 1  # the last rank has padding, or only that
    hidden, weight, targets, lists = made(seed, 13)
    padded = torch.cat([weight.detach(), torch.full((columns * ranks - VOCABULARY, WIDTH), 9.0, dtype=torch.float64)])
    own = padded[rank * columns : (rank + 1) * columns].clone().requires_grad_()
    group = dist.group.WORLD if ranks > 1 else None
    found = replayed_statistics(
        hidden, own, targets, sets_of(lists), group=group, temperature=TEMPERATURE, vocab_size=VOCABULARY
    )
    mixed(found).backward()
    return {**found._asdict(), "d_hidden": hidden.grad, "d_weight": own.grad}


def of_all_seeds(rank_of_one: bool = False) -> list[dict[str, Tensor]]:
    ranks = 1 if rank_of_one else dist.get_world_size()
    found = [on_ranks(0 if rank_of_one else dist.get_rank(), ranks, seed) for seed in range(3)]
    return [{name: tensor.detach() for name, tensor in each.items()} for each in found]


@pytest.mark.parametrize("ranks", [2, 3])
def test_shards_give_the_whole(ranks: int) -> None:
    everyone = run_on_ranks(of_all_seeds, ranks)
    for seed, alone in enumerate(of_all_seeds(rank_of_one=True)):
        for results in everyone:
            for name in ("logprob", "entropy", "kept_entropy", "d_hidden"):
                torch.testing.assert_close(results[seed][name], alone[name], rtol=1e-11, atol=1e-12)
        joined = torch.cat([results[seed]["d_weight"] for results in everyone])[:VOCABULARY]
        torch.testing.assert_close(joined, alone["d_weight"][:VOCABULARY], rtol=1e-11, atol=1e-12)


def broken(what: str) -> tuple[Tensor, Tensor, Tensor, list[list[int]]]:
    hidden, weight, targets, lists = made(1, 4, whole=False)
    if what == "not in its set":
        lists[2] = [each for each in range(VOCABULARY) if each != int(targets[2])]
    elif what == "twice":
        lists[1] = [*lists[1], lists[1][0]]
    elif what == "outside the vocabulary":
        lists[3] = [*lists[3], VOCABULARY]
    elif what == "empty":
        lists[0] = []
    elif what == "NaN":
        hidden = hidden.detach().clone()
        hidden[1, 0] = math.nan
    elif what == "a set too few":
        lists = lists[:-1]
    return hidden, weight, targets, lists


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("not in its set", "row 2 keeps 28 tokens, and its target .* is not among them"),
        ("twice", "a kept set holds a token twice"),
        ("outside the vocabulary", "row 3 keeps the token 29, outside the vocabulary"),
        ("empty", "row 0 keeps 0 tokens"),
        ("NaN", "logits of token 1 hold NaN"),
        ("a set too few", "with 3 kept sets"),
    ],
)
def test_sets_that_cannot_be_are_refused(what: str, told: str) -> None:
    hidden, weight, targets, lists = broken(what)
    with pytest.raises(StatisticsError, match=told):
        truncated_statistics(hidden, weight, targets, sets_of(lists))
