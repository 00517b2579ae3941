"""Each preset, and every rule in every scope, marks what its restatement marks, also on the hardest of values."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.restated import SPECIAL, restated

from megatron_fork.selection import PRESETS, SelectionConfig, select_tokens

entropies = st.floats(0.0, 12.0, width=32) | st.sampled_from(SPECIAL)


@st.composite
def mini_batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(entropies, candidates, segments, ids), of which many entropies are equal."""
    size = draw(st.integers(0, 60))
    few = draw(st.lists(entropies, min_size=1, max_size=12))
    values = draw(st.lists(st.sampled_from(few) | entropies, min_size=size, max_size=size))
    flags = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    segments = draw(st.lists(st.sampled_from([0, 1, 2, 7]), min_size=size, max_size=size))
    ids = draw(st.permutations([place * 10**6 for place in range(size)]))
    return (
        torch.tensor(values, dtype=torch.float32),
        torch.tensor(flags, dtype=torch.bool),
        torch.tensor(segments, dtype=torch.int64),
        torch.tensor(ids, dtype=torch.int64),
    )


def check(config: SelectionConfig, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    entropy, mask, segments, ids = batch
    found = select_tokens(entropy, mask, config, segments=segments, token_ids=ids)
    flags, threshold = restated(entropy, mask, config, segments=segments, ids=ids)
    assert found.mask.tolist() == flags
    assert (found.selected, found.candidates) == (sum(flags), int(mask.sum()))
    if config.tokens == "all":
        threshold = math.nan
    # The restatement rounds a quantile to float32, which the scores are compared in.
    assert found.threshold == pytest.approx(threshold, rel=1e-6, abs=1e-44, nan_ok=True)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@given(
    batch=mini_batches(), ratio=st.sampled_from([0.05, 0.2, 0.5, 0.8, 1.0]), tokens=st.sampled_from(["top", "bottom"])
)
@settings(max_examples=80, deadline=None)
def test_presets(preset: str, batch: tuple[torch.Tensor, ...], ratio: float, tokens: str) -> None:
    check(SelectionConfig(preset=preset, ratio=ratio, tokens=tokens), batch)


@pytest.mark.parametrize(
    ("scope", "rule"),
    list(
        itertools.product(
            ("minibatch", "microbatch_global", "microbatch", "sequence"), ("threshold", "exact_k", "quantile")
        )
    ),
)
@given(batch=mini_batches(), ratio=st.sampled_from([0.1, 0.25, 0.7]), tokens=st.sampled_from(["top", "bottom", "all"]))
@settings(max_examples=30, deadline=None)
def test_every_choice(scope: str, rule: str, batch: tuple[torch.Tensor, ...], ratio: float, tokens: str) -> None:
    check(SelectionConfig(scope=scope, rule=rule, ratio=ratio, tokens=tokens), batch)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_is_the_same_in_python_and_in_a_recipe(preset: str, tmp_path: Path) -> None:
    from megatron_fork.config import load_config

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{path: somewhere}}\nselection: {{preset: {preset}}}\n")
    assert load_config(recipe).selection == SelectionConfig(preset=preset)
    assert vars(SelectionConfig(preset=preset)).items() >= PRESETS[preset]["selection"].items()
    assert load_config(recipe, ["selection.rule=exact_k"]).selection == SelectionConfig(preset=preset, rule="exact_k")


def test_the_threshold_repeats_the_choice() -> None:
    """A cut over the whole mini-batch is reported to the last bit."""
    generator = torch.Generator().manual_seed(3)
    for count in (1, 3, 10, 49, 1000):
        entropy = torch.rand(count, generator=generator)
        found = select_tokens(entropy, torch.ones(count, dtype=torch.bool), SelectionConfig())
        assert found.threshold in entropy.tolist()
        assert torch.equal(found.mask, entropy >= found.threshold)


def test_zero_is_reported_without_a_sign() -> None:
    for entropy in ([0.0, 0.0], [-0.0, -0.0], [0.0, -0.0, 3.0]):
        for scope in ("minibatch", "sequence"):
            found = select_tokens(
                torch.tensor(entropy),
                torch.ones(len(entropy), dtype=torch.bool),
                SelectionConfig(tokens="bottom", scope=scope),
            )
            assert math.copysign(1.0, found.threshold) == 1.0
            assert found.mask.tolist() == [value == 0.0 for value in entropy]  # the zeros are ties


def test_infinite_neighbours_of_a_quantile() -> None:
    """Where an infinity leaves nothing to interpolate, the cut is still one that marks tokens."""
    config = SelectionConfig(rule="quantile", ratio=0.5)
    for values, marked in (
        ([math.inf], [True]),
        ([math.inf, math.inf, 0.0], [True, True, False]),
        ([1.0, math.inf, 0.0], [True, True, False]),
        ([1.0, math.inf], [False, True]),
    ):
        found = select_tokens(torch.tensor(values), torch.ones(len(values), dtype=torch.bool), config)
        assert found.mask.tolist() == marked


def test_the_random_choice_stays_what_it_was() -> None:
    """Published runs name their seed: the same seed must go on meaning the same tokens."""
    mask = torch.ones(40, dtype=torch.bool)
    chosen = select_tokens(
        torch.zeros(40), mask, SelectionConfig(tokens="random", seed=3), step=2, token_ids=torch.arange(40)
    )
    assert chosen.mask.nonzero()[:, 0].tolist() == [5, 7, 9, 15, 20, 24, 26, 39]
    far = torch.arange(40) * 2**55 - 2**60
    chosen = select_tokens(
        torch.zeros(40), mask, SelectionConfig(tokens="random", seed=-(2**70)), step=10**12, token_ids=far
    )
    assert chosen.mask.nonzero()[:, 0].tolist() == [2, 3, 4, 16, 24, 32, 33, 38]
