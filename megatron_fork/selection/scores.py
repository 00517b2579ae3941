"""The scores that tokens are ranked by, and the columns that a score may read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from megatron_fork.distributed import collectives
from megatron_fork.distributed.collectives import Group
from megatron_fork.errors import SelectionError
from megatron_fork.selection.config import SelectionConfig

_BLOCK = 1 << 20  # tokens mixed at a time, to save memory


@dataclass(frozen=True)
class TokenColumns:
    """This rank's tokens, `[tokens]` each. Values at tokens that are not candidates are arbitrary and ignored."""

    entropy: Tensor
    """float, nats, without gradient."""
    candidate: Tensor
    """bool: the tokens that can be chosen."""
    config: SelectionConfig
    step: int
    """Number of the update."""
    group: Group
    """The ranks that share the mini-batch: a score that needs a sum over all tokens must sum over these."""
    others: Mapping[str, Tensor]
    """In training: `logprob` of the same policy as the entropy, `old_logprob`, `rollout_logprob`, `advantage`; `sequence`, the
    response of each token on this rank, `response`, its number among all, and `place`, the token's place in it."""
    given_ids: Tensor | None = None

    def needed(self, name: str) -> Tensor:
        """One of `others`; raises `SelectionError` if it was not passed to `select_tokens`."""
        if name not in self.others:
            raise SelectionError(
                f"selection.tokens={self.config.tokens} needs the column {name}, which is not given",
                hint=f"there are {', '.join(self.others) or 'entropies alone'}: pass columns={{...}} to select_tokens",
            )
        return self.others[name]

    @cached_property
    def token_id(self) -> Tensor:
        """int64: the given ids, or places in the concatenation of all ranks' tokens; the first access is collective."""
        if self.given_ids is not None:
            return self.given_ids.reshape(-1).to(torch.int64)
        count = torch.tensor([self.candidate.numel()], device=self.candidate.device)
        tokens = collectives.all_gather(count, self.group)[:, 0]
        first = int(tokens[: collectives.rank(self.group)].sum())
        return torch.arange(first, first + self.candidate.numel(), device=self.candidate.device)


def entropy(tokens: TokenColumns) -> Tensor:
    return tokens.entropy


def pseudo_random(tokens: TokenColumns) -> Tensor:
    """int32, not negative: 31 pseudo-random bits for each token's id, the same on every device and for every layout."""
    return random_bits(tokens.token_id, tokens.config.seed, tokens.step)


def random_bits(ids: Tensor, seed: int, step: int) -> Tensor:
    """int32 `[ids]`, not negative: 31 pseudo-random bits for each int64 id, others for each seed and step."""
    # Python integers are unbounded, tensors wrap around at 64 bits: the offset must fit before it is added.
    offset = (seed * 1_000_003 + step) * 0x9E3779B1 & 0x7FFFFFFFFFFFFFFF
    return torch.cat([_mixed(block + offset).to(torch.int32) for block in ids.split(_BLOCK)])


def _mixed(numbers: Tensor) -> Tensor:
    """Multiply and shift, in place, until every bit of a number affects every bit of the result."""
    for factor in (0x45D9F3B3335B369, 0x3C6EF372FE94F82B):
        numbers.bitwise_xor_(numbers >> 29).mul_(factor)
    return numbers.bitwise_xor_(numbers >> 32).bitwise_and_(0x7FFFFFFF)
