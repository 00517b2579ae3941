"""Input that has no statistics is refused in one line that names the token, the value and the way out."""

import math

import pytest
import torch
import torch.distributed as dist
from support.ranks import run_on_ranks
from torch import Tensor

from megatron_fork.errors import ConfigError, StatisticsError
from megatron_fork.vocab_parallel import VocabParallelConfig, lm_head_loss, lm_head_statistics, token_statistics


def through(kind: str, logits: Tensor, targets: Tensor, **options) -> None:
    """The logits through each entrance: as they are, or as hidden states times a unit matrix."""
    if kind == "logits":
        token_statistics(logits, targets, **options)
    elif kind == "head":
        lm_head_statistics(logits, torch.eye(logits.shape[1]), targets, **options)
    else:
        lm_head_loss(
            logits,
            torch.eye(logits.shape[1]),
            targets,
            lambda part, _: (part.logprob.sum(), {}),
            chunk_tokens=2,
            **options,
        )


KINDS = pytest.mark.parametrize("kind", ["logits", "head", "loss"])


@KINDS
@pytest.mark.parametrize("target", [-1, -100, 7, 8])
def test_target_out_of_range(kind: str, target: int) -> None:
    targets = torch.tensor([0, 1, 2, target, 4])
    with pytest.raises(
        StatisticsError, match=rf"target {target} of token 3 is outside the vocabulary \[0, 7\)"
    ) as error:
        through(kind, torch.randn(5, 8), targets, vocab_size=7)
    assert "rows" in error.value.hint


@KINDS
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite(kind: str, value: float) -> None:
    logits = torch.randn(6, 8)
    logits[4, 5] = value
    with pytest.raises(StatisticsError, match=r"logits of token 4 hold NaN .*\(1 such token"):
        through(kind, logits, torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize("kind", ["head", "loss"])
def test_the_token_is_named_among_all_tokens(kind: str) -> None:
    logits = torch.randn(6, 8)
    logits[4] = math.nan
    with pytest.raises(StatisticsError, match="token 4 "):
        through(kind, logits, torch.zeros(6, dtype=torch.long), rows=torch.tensor([0, 2, 4]))
    through(kind, logits, torch.zeros(6, dtype=torch.long), rows=torch.tensor([0, 2, 5]))


def test_a_row_without_any_column() -> None:
    logits = torch.zeros(3, 4)
    logits[1] = -math.inf
    with pytest.raises(StatisticsError, match="token 1 "):
        token_statistics(logits, torch.zeros(3, dtype=torch.long))


@KINDS
def test_vocabulary_larger_than_the_shards(kind: str) -> None:
    with pytest.raises(StatisticsError, match=r"vocab_size=9 is more than the 8 columns of each of 1 rank"):
        through(kind, torch.randn(2, 8), torch.zeros(2, dtype=torch.long), vocab_size=9)


@KINDS
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature(kind: str, temperature: float) -> None:
    with pytest.raises(StatisticsError, match="temperature="):
        through(kind, torch.randn(2, 8), torch.zeros(2, dtype=torch.long), temperature=temperature)


@KINDS
def test_shapes_that_disagree(kind: str) -> None:
    with pytest.raises(StatisticsError, match=r"\[5, 8\], targets \[4\]"):
        through(kind, torch.randn(5, 8), torch.zeros(4, dtype=torch.long))


def test_rows_and_weight_that_disagree() -> None:
    hidden, weight, targets = torch.randn(5, 8), torch.randn(9, 8), torch.zeros(5, dtype=torch.long)
    with pytest.raises(StatisticsError, match=r"rows has shape \[4\]"):
        lm_head_statistics(hidden, weight, targets, rows=torch.ones(4, dtype=torch.bool))
    with pytest.raises(StatisticsError, match=r"weight \[9, 7\]"):
        lm_head_statistics(hidden, weight[:, :7], targets)


@pytest.mark.parametrize(("field", "value"), [("kernels", "cuda"), ("chunk_mib", -1)])
def test_config(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"vocab_parallel\.{field}={value}"):
        VocabParallelConfig(**{field: value})


def shards_of_different_size() -> str:
    logits = torch.randn(3, 8 + dist.get_rank())
    try:
        token_statistics(logits, torch.zeros(3, dtype=torch.long), group=dist.group.WORLD)
    except StatisticsError as error:
        return error.message
    return ""


@pytest.mark.slow
def test_shards_of_different_size() -> None:
    assert run_on_ranks(shards_of_different_size, 2) == ["the ranks of the group hold [8, 9] columns"] * 2
