"""However responses are spread over ranks, weights, covered tokens, whitened advantages and mismatch are those of one rank."""

import math
import random
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.ranks import run_on_ranks
from torch import Tensor

from megatron_fork.errors import ObjectiveError
from megatron_fork.objective import (
    ObjectiveConfig,
    accepted_responses,
    covariance_tokens,
    group_advantages,
    policy_loss,
    rollout_mismatch,
    token_weights,
    whiten,
)

RANKS = 3
SPLITS = (0, 1, 5)
AVERAGES = [
    ObjectiveConfig(average=average, denominator=denominator, constant_length=50)
    for average in ("token", "sequence", "constant")
    for denominator in ("selected", "all")
]
COVARIANCES = [
    ObjectiveConfig(loss="kl_cov", cov_share=0.03),
    ObjectiveConfig(loss="clip_cov", cov_share=0.05, cov_low=0.1, cov_high=6.0),
    ObjectiveConfig(loss="clip_cov", cov_share=0.9, cov_low=0.1, cov_high=6.0),  # fewer in the bounds than wanted
]


def batch() -> dict[str, Tensor]:
    """The columns of 20 responses in 5 groups, with many equal values."""
    generator = torch.Generator().manual_seed(11)
    lengths = torch.randint(1, 40, (20,), generator=generator)
    sequence = torch.arange(20).repeat_interleave(lengths)
    tokens = len(sequence)
    candidate = (torch.rand(tokens, generator=generator) < 0.9) & (sequence != 4)
    old = -torch.randint(0, 30, (tokens,), generator=generator) / 8
    return {
        "sequence": sequence,
        "candidate": candidate,
        "selected": candidate & (torch.rand(tokens, generator=generator) < 0.3),
        "old": old,
        "rollout": old + torch.randn(tokens, generator=generator) / 50,
        "advantage": torch.randint(-9, 10, (20,), generator=generator)[sequence] / 4,
        "id": torch.randperm(tokens, generator=generator) * 2**24,
        "reward": torch.randint(0, 9, (20,), generator=generator) / 8,
        "group": torch.arange(20) // 4,
    }


def owners(split: int) -> Tensor:
    """The rank of each group of responses; under the first splits one rank has none."""
    generator = random.Random(split)
    return torch.tensor([generator.choice([rank for rank in range(RANKS) if rank != split]) for _ in range(5)])


def share_of(split: int) -> dict[str, Tensor]:
    made = batch()
    mine = (owners(split) == dist.get_rank())[made["group"]]
    tokens = mine[made["sequence"]]
    share = {name: column[mine if name in ("reward", "group") else tokens] for name, column in made.items()}
    return {**share, "place": tokens.nonzero()[:, 0], "response": mine.nonzero()[:, 0]}


def measure(share: dict[str, Tensor], group: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"place": share.get("place"), "response": share.get("response")}
    old, selected, advantage = share["old"], share["selected"], share["advantage"]
    for number, config in enumerate(AVERAGES):
        weight, normalizer = token_weights(selected, share["candidate"], share["sequence"], config, group=group)
        found[f"normalizer {number}"] = normalizer
        now = old.clone().requires_grad_()
        loss, _ = policy_loss(now, old, advantage, selected, config, normalizer=normalizer, weight=weight)
        loss.backward()
        found[f"gradient {number}"] = now.grad
    for number, config in enumerate(COVARIANCES):
        found[f"covered {number}"] = covariance_tokens(
            old, advantage, selected, config, group=group, token_ids=share["id"], step=2
        )
    found["whitened"] = whiten(advantage, selected, group)
    estimator = ObjectiveConfig(advantage="reinforce_pp")
    found["reinforce_pp"] = group_advantages(share["reward"], share["group"], estimator, group=group)
    config = ObjectiveConfig(correction="sequence", sequence_low=0.998, sequence_high=1.002)
    accepted = accepted_responses(old, share["rollout"], share["sequence"], config)
    found["mismatch"] = rollout_mismatch(old, share["rollout"], config, accepted=accepted, group=group)
    return found


def raised(call: Any) -> str:
    try:
        call()
    except ObjectiveError as error:
        return error.message
    return ""


def on_rank() -> tuple[list[dict[str, Any]], list[str], float]:
    """(what each split gives, what a bad value on the first rank does everywhere, the mismatch of a NaN there)."""
    world = dist.group.WORLD
    found = [measure(share_of(split), world) for split in SPLITS]
    column = torch.tensor([0.0, math.nan if dist.get_rank() == 0 else 1.0])
    flags, fine = torch.ones(2, dtype=torch.bool), torch.zeros(2)
    errors = [
        raised(lambda: whiten(column, flags, world)),
        raised(lambda: covariance_tokens(fine, column, flags, ObjectiveConfig(loss="kl_cov"), group=world)),
        raised(lambda: group_advantages(column, flags.long(), ObjectiveConfig(advantage="reinforce_pp"), group=world)),
    ]
    nothing = torch.zeros(0, dtype=torch.bool)
    assert token_weights(nothing, nothing, nothing.long(), ObjectiveConfig(), group=world) == (None, 1.0)
    return found, errors, rollout_mismatch(column, fine, ObjectiveConfig(), group=world).largest


@pytest.mark.slow
def test_ragged_splits_equal_one_rank() -> None:
    answers = run_on_ranks(on_rank, RANKS)
    whole = measure(batch(), None)
    assert whole["covered 0"].sum() > 0 and 0 < whole["covered 1"].sum() < whole["covered 2"].sum()
    assert 0.0 < whole["mismatch"].clipped < 1.0
    for split in range(len(SPLITS)):
        shares = [found[split] for found, _, _ in answers]
        assert SPLITS[split] >= RANKS or not len(shares[SPLITS[split]]["place"])
        for name, expected in whole.items():
            if name.startswith("normalizer"):
                assert [share[name] for share in shares] == [expected] * RANKS
            elif name == "mismatch":
                for share in shares:
                    assert share[name] == pytest.approx(tuple(expected), rel=1e-12)
            elif name not in ("place", "response"):
                order = torch.cat([share["response" if name == "reinforce_pp" else "place"] for share in shares])
                column = torch.cat([share[name] for share in shares])
                torch.testing.assert_close(column, expected[order], rtol=1e-6, atol=1e-9)

    for _, errors, largest in answers:
        assert all("not finite" in message or "is nan" in message for message in errors)
        assert largest == math.inf
