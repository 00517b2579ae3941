"""`select_tokens` marks what a plain restatement of each named choice marks, with global counts and an exact k."""

import itertools
import math
import random
import re
from fractions import Fraction

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_fork.errors import ConfigError, SelectionError
from megatron_fork.selection import Selection, SelectionConfig, select_tokens

SCOPES = ("minibatch", "microbatch_global", "microbatch", "sequence")
RULES = ("threshold", "exact_k", "quantile")


def expected_of_one_cut(entropy: list[float], tokens: str, rule: str, ratio: str) -> tuple[list[bool], float]:
    """The marked tokens and the entropy at the cut, by sorting."""
    if tokens == "all" or not entropy:
        return [True] * len(entropy), math.nan
    sign = {"top": 1.0, "bottom": -1.0}[tokens]
    score = [sign * value for value in entropy]
    k = math.ceil(Fraction(ratio) * len(score))
    ranking = sorted(range(len(score)), key=lambda place: (-score[place], place))
    if rule == "exact_k":
        chosen = set(ranking[:k])
        return [place in chosen for place in range(len(score))], sign * score[ranking[k - 1]]
    if rule == "threshold":
        cut = score[ranking[k - 1]]
    else:
        cut = float(numpy.float32(numpy.quantile(numpy.array(score, dtype=numpy.float64), 1.0 - float(ratio))))
    return [value >= cut for value in score], sign * cut


def expected(
    entropy: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor, config: SelectionConfig
) -> tuple[torch.Tensor, float]:
    marked = torch.zeros_like(mask)
    cuts, weights = [], []
    for segment in segments.unique().tolist():
        places = (mask & (segments == segment)).nonzero().tolist()
        chosen, cut = expected_of_one_cut(
            [entropy[tuple(place)].item() for place in places], config.tokens, config.rule, str(config.ratio)
        )
        for place, is_chosen in zip(places, chosen, strict=True):
            marked[tuple(place)] = is_chosen
        if not math.isnan(cut):
            cuts.append(cut)
            weights.append(len(places))
    return marked, sum(c * w for c, w in zip(cuts, weights, strict=True)) / sum(weights) if weights else math.nan


def check(found: Selection, mask: torch.Tensor, marked: torch.Tensor, threshold: float) -> None:
    assert torch.equal(found.mask, marked)
    assert (found.selected, found.candidates) == (int(marked.sum()), int(mask.sum()))
    assert found.threshold == pytest.approx(threshold, rel=1e-6, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(("tokens", "rule", "scope"), list(itertools.product(("top", "bottom", "all"), RULES, SCOPES)))
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_equals_sorting(tokens: str, rule: str, scope: str, data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(4, 9), (1, 17), (3, 1)]))
    size = math.prod(shape)
    # Multiples of 1/8 up to 2: many ties, and interpolations between them are exact in float32.
    entropy = torch.tensor(data.draw(st.lists(st.integers(0, 16), min_size=size, max_size=size)), dtype=torch.float32)
    entropy = (entropy / 8).view(shape)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size))).view(shape)
    ratio = data.draw(st.sampled_from([0.1, 0.2, 0.25, 0.5, 0.7, 1.0]))
    config = SelectionConfig(tokens=tokens, rule=rule, scope=scope, ratio=ratio)
    entropy[~mask] = math.nan  # never looked at
    segments = torch.zeros(shape, dtype=torch.long)
    given_segments = None
    if scope == "sequence":
        segments = torch.arange(shape[0])[:, None].expand(shape)
    elif scope.startswith("microbatch") and data.draw(st.booleans()):
        places = data.draw(st.lists(st.sampled_from([0, 1, 3]), min_size=size, max_size=size))
        given_segments = segments = torch.tensor(places).view(shape)
    found = select_tokens(entropy, mask, config, segments=given_segments)
    check(found, mask, *expected(entropy, mask, segments, config))


@pytest.mark.parametrize("scope", SCOPES)
def test_random_marks_exactly_k_whatever_the_entropy(scope: str) -> None:
    mask = torch.ones(6, 50, dtype=torch.bool)
    mask[:, 40:] = False
    config = SelectionConfig(tokens="random", scope=scope, seed=12345)
    found = select_tokens(torch.full((6, 50), math.nan), mask, config)
    assert (found.selected, found.candidates) == (48, 240)
    assert math.isnan(found.threshold)
    assert int(found.mask.sum()) == 48
    assert not found.mask[:, 40:].any()
    if scope == "sequence":
        assert found.mask.sum(1).tolist() == [8] * 6
    assert torch.equal(found.mask, select_tokens(torch.rand(6, 50), mask, config).mask)


def test_random_is_another_choice_in_every_step_and_for_every_seed() -> None:
    mask = torch.ones(5000, dtype=torch.bool)
    entropy = torch.zeros(5000)
    choices = [
        select_tokens(entropy, mask, SelectionConfig(tokens="random", seed=seed), step=step).mask
        for seed, step in ((0, 0), (0, 1), (1, 0), (2**31, 0), (2**62, 7))
    ]
    for one, other in itertools.combinations(choices, 2):
        # Independent fifths share 200 of 5,000 tokens, give or take 13.
        assert 135 < int((one & other).sum()) < 265
    for choice in choices:
        assert 135 < int(choice[:1000].sum()) < 265  # evenly over the places


@given(count=st.integers(1, 400), ratio=st.sampled_from(["0.1", "0.2", "0.3", "0.7", "0.05", "0.15", "0.9", "1.0"]))
@settings(max_examples=150, deadline=None)
def test_k_is_the_exact_ceiling(count: int, ratio: str) -> None:
    entropy = torch.tensor(random.Random(count).sample(range(count), count), dtype=torch.float32)
    for rule, tokens in (("threshold", "top"), ("exact_k", "bottom"), ("exact_k", "random")):
        config = SelectionConfig(ratio=float(ratio), rule=rule, tokens=tokens)
        found = select_tokens(entropy, torch.ones(count, dtype=torch.bool), config)
        assert found.selected == max(1, math.ceil(Fraction(ratio) * count))


@pytest.mark.parametrize(
    ("ratio", "count", "k"), [(0.2, 15, 3), (0.1, 30, 3), (0.7, 10, 7), (0.2, 16, 4), (0.01, 5, 1)]
)
def test_ceiling_examples(ratio: float, count: int, k: int) -> None:
    found = select_tokens(torch.arange(float(count)), torch.ones(count, dtype=torch.bool), SelectionConfig(ratio=ratio))
    assert found.selected == k
    assert found.threshold == count - k


def test_token_ids_break_ties() -> None:
    entropy, mask = torch.tensor([1.0, 1.0, 1.0, 2.0, 1.0]), torch.ones(5, dtype=torch.bool)
    config = SelectionConfig(rule="exact_k", ratio=0.6)
    assert select_tokens(entropy, mask, config).mask.tolist() == [True, True, False, True, False]
    ids = torch.tensor([40, 3, 30, 99, 2**40])
    assert select_tokens(entropy, mask, config, token_ids=ids).mask.tolist() == [False, True, True, True, False]


def test_tie_tolerance_makes_neighbours_of_the_cut_equal_to_it() -> None:
    entropy, mask = torch.tensor([0.5, 1.0 - 1e-3, 1.0, 1.0 + 1e-3, 2.0, 1.0 - 1e-2]), torch.ones(6, dtype=torch.bool)
    ids = torch.tensor([0, 1, 2, 3, 4, 5])
    for rule, marked in (("threshold", [1, 2, 3, 4]), ("exact_k", [1, 2, 4])):
        config = SelectionConfig(rule=rule, ratio=0.5)
        assert select_tokens(entropy, mask, config, token_ids=ids).mask.nonzero()[:, 0].tolist() == [2, 3, 4]
        found = select_tokens(entropy, mask, config, token_ids=ids, tie_tolerance=2e-3)
        assert found.mask.nonzero()[:, 0].tolist() == marked
        assert found.threshold == 1.0


@pytest.mark.parametrize("tokens", ["top", "bottom", "random", "all"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (2, 4)])
def test_no_candidates(tokens: str, scope: str, shape: tuple[int, ...]) -> None:
    for rule in RULES:
        config = SelectionConfig(tokens=tokens, scope=scope, rule=rule)
        found = select_tokens(torch.full(shape, math.nan), torch.zeros(shape, dtype=torch.bool), config)
        assert not found.mask.any()
        assert found.mask.shape == shape
        assert (found.selected, found.candidates) == (0, 0)
        assert math.isnan(found.threshold)


def test_entropy_is_neither_changed_nor_differentiated() -> None:
    entropy = torch.tensor([3.0, -0.0, 1.0, 2.0], requires_grad=True)
    found = select_tokens(entropy, torch.ones(4, dtype=torch.bool), SelectionConfig(ratio=0.5, tokens="bottom"))
    assert found.mask.tolist() == [False, True, True, False]
    assert not found.mask.requires_grad
    assert entropy.tolist() == [3.0, 0.0, 1.0, 2.0]


def test_bad_input_is_named() -> None:
    with pytest.raises(SelectionError, match=r"entropy has shape \[3\], response_mask \[4\]"):
        select_tokens(torch.zeros(3), torch.ones(4, dtype=torch.bool), SelectionConfig())
    with pytest.raises(SelectionError, match="value 1 of rank 0 is NaN"):
        select_tokens(torch.tensor([0.0, math.nan]), torch.ones(2, dtype=torch.bool), SelectionConfig())
    for ratio, wrong in ((0.0, "outside (0, 1]"), (-0.1, "outside (0, 1]"), (math.nan, "not a finite number")):
        with pytest.raises(ConfigError, match=re.escape(f"selection.ratio={ratio} is {wrong}")):
            SelectionConfig(ratio=ratio)
