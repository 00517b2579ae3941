"""Two vocabulary shards give the statistics and gradients of the whole vocabulary, each rank those of its columns."""

import math

import pytest
import torch
import torch.distributed as dist
from support.ranks import run_on_ranks
from torch import Tensor

from megatron_fork.vocab_parallel import lm_head_statistics, token_statistics

TOKENS, WIDTH, COLUMNS = 19, 8, 24
# The second rank holds columns 24 to 47: padding in part, in whole, or none.
VOCABULARIES = (48, 41, 24, 20)


def make(vocab_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = 3 * torch.randn(TOKENS, 2 * COLUMNS, generator=generator, dtype=torch.float64)
    logits[0, 3:19] = -math.inf
    logits[1, :5] = 1e4
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    weight = torch.randn(2 * COLUMNS, WIDTH, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, vocab_size, (TOKENS,), generator=generator)
    targets[0] = 1
    return logits, hidden, weight, targets


def upstream(statistics) -> Tensor:
    places = torch.arange(statistics.logprob.numel(), dtype=torch.float64)
    return (statistics.logprob * (1 + places)).sum() + (statistics.entropy * (places.cos() - 2)).sum()


def answers(vocab_size: int, rank: int, ranks: int) -> dict[str, Tensor]:
    group = dist.group.WORLD if ranks > 1 else None
    logits, hidden, weight, targets = make(vocab_size)
    shard = slice(rank * 2 * COLUMNS // ranks, (rank + 1) * 2 * COLUMNS // ranks)
    own_logits, own_weight = logits[:, shard].clone().requires_grad_(), weight[shard].clone().requires_grad_()
    hidden.requires_grad_()
    whole = token_statistics(own_logits, targets, group=group, temperature=0.8, vocab_size=vocab_size)
    upstream(whole).backward()
    rows = torch.arange(TOKENS) % 2 == 0
    head = lm_head_statistics(
        hidden, own_weight, targets, rows=rows, group=group, temperature=0.8, vocab_size=vocab_size, chunk_tokens=3
    )
    upstream(head).backward()
    nothing = lm_head_statistics(hidden, own_weight, targets, rows=rows & False, group=group, vocab_size=vocab_size)
    upstream(nothing).backward()
    return {
        "logprob": whole.logprob.detach(),
        "entropy": whole.entropy.detach(),
        "d_logits": own_logits.grad,
        "head logprob": head.logprob.detach(),
        "head entropy": head.entropy.detach(),
        "d_hidden": hidden.grad,
        "d_weight": own_weight.grad,
    }


def all_answers() -> list[dict[str, Tensor]]:
    return [answers(vocab_size, dist.get_rank(), 2) for vocab_size in VOCABULARIES]


@pytest.mark.slow
def test_two_ranks_equal_one() -> None:
    first, second = run_on_ranks(all_answers, 2)
    for vocab_size, left, right in zip(VOCABULARIES, first, second, strict=True):
        for name, expected in answers(vocab_size, 0, 1).items():
            if name in ("d_logits", "d_weight"):
                found = torch.cat([left[name], right[name]], dim=1 if name == "d_logits" else 0)
                torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
            else:
                assert torch.equal(left[name], right[name])
                torch.testing.assert_close(left[name], expected, rtol=1e-11, atol=1e-12)
