"""Thousands of segments are cut like one at a time: ragged, unsorted, far apart, one token long."""

import math

import pytest
import torch
from support.restated import restated

from megatron_fork.selection import SelectionConfig, select_tokens

RULES = ("threshold", "exact_k", "quantile")


def ragged(segments: int, longest: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(entropies with many ties, candidates, segments in order); some segments are empty or without candidates."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (segments,), generator=generator)
    segment = torch.arange(segments).repeat_interleave(lengths)
    entropy = torch.empty(len(segment)).exponential_(1.0, generator=generator)
    entropy = torch.where(torch.rand(len(segment), generator=generator) < 0.5, (entropy * 4).round() / 4, entropy)
    mask = (torch.rand(len(segment), generator=generator) < 0.8) & (segment % 7 != 3)
    return entropy.where(mask, math.nan), mask, segment


def check(entropy: torch.Tensor, mask: torch.Tensor, segment: torch.Tensor, config: SelectionConfig) -> None:
    ids = torch.randperm(len(entropy), generator=torch.Generator().manual_seed(0))
    found = select_tokens(entropy, mask, config, segments=segment, token_ids=ids)
    flags, threshold = restated(entropy, mask, config, segments=segment, ids=ids)
    assert found.mask.tolist() == flags
    assert (found.selected, found.candidates) == (sum(flags), int(mask.sum()))
    assert found.threshold == pytest.approx(threshold, rel=1e-6)


@pytest.mark.parametrize(("segments", "longest"), [(3000, 60), (70_000, 2), (5, 40_000)])
@pytest.mark.parametrize("rule", RULES)
def test_sequences(segments: int, longest: int, rule: str) -> None:
    for tokens in ("top", "bottom"):
        check(
            *ragged(segments, longest, seed=segments),
            SelectionConfig(scope="sequence", rule=rule, tokens=tokens, ratio=0.3),
        )


@pytest.mark.parametrize("scope", ["microbatch", "microbatch_global", "sequence"])
@pytest.mark.parametrize("rule", RULES)
def test_unsorted_segments(scope: str, rule: str) -> None:
    entropy, mask, segment = ragged(600, 300, seed=1)
    order = torch.randperm(len(entropy), generator=torch.Generator().manual_seed(2))
    check(entropy[order], mask[order], segment[order], SelectionConfig(scope=scope, rule=rule))


def test_numbers_far_apart() -> None:
    entropy, mask, segment = ragged(500, 20, seed=4)
    for rule in RULES:
        config = SelectionConfig(scope="sequence", rule=rule)
        near = select_tokens(entropy, mask, config, segments=segment)
        far = select_tokens(entropy, mask, config, segments=segment * 2**40 + 12345)
        assert torch.equal(near.mask, far.mask)
        assert near.threshold == pytest.approx(far.threshold, rel=1e-12)


def test_narrow_integers_number_segments_too() -> None:
    entropy, mask, segment = ragged(100, 20, seed=8)
    wide = select_tokens(entropy, mask, SelectionConfig(scope="microbatch"), segments=segment)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        narrow = select_tokens(entropy, mask, SelectionConfig(scope="microbatch"), segments=segment.to(dtype))
        assert torch.equal(narrow.mask, wide.mask)


def test_what_stands_at_tokens_that_are_no_candidates_is_not_looked_at() -> None:
    entropy, mask, segment = ragged(50, 20, seed=5)
    for tokens in ("top", "random"):
        for scope in ("microbatch_global", "sequence"):
            config = SelectionConfig(scope=scope, tokens=tokens)
            found = select_tokens(entropy, mask, config, segments=segment)
            other = select_tokens(entropy, mask, config, segments=segment.where(mask, -(2**50)))
            assert torch.equal(found.mask, other.mask)


@pytest.mark.parametrize("scope", ["microbatch", "microbatch_global", "sequence"])
def test_random_marks_exactly_k_of_each(scope: str) -> None:
    entropy, mask, segment = ragged(3000, 60, seed=6)
    found = select_tokens(entropy, mask, SelectionConfig(tokens="random", scope=scope), segments=segment)
    counts = torch.bincount(segment[mask], minlength=3000)
    marked = torch.bincount(segment[found.mask], minlength=3000)
    assert marked.tolist() == [math.ceil(count / 5) for count in counts.tolist()]
    assert not (found.mask & ~mask).any()
