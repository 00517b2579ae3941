"""A selection that cannot mean anything is refused in one line that names the field, the value and the way out."""

import itertools
import math

import pytest
import torch

from megatron_fork.errors import ConfigError, SelectionError
from megatron_fork.selection import SelectionConfig, select_tokens

CHOICES = {
    "preset": ("paper", "authors_code", "trl"),
    "tokens": ("top", "bottom", "random", "all"),
    "scope": ("minibatch", "microbatch_global", "microbatch", "sequence"),
    "rule": ("threshold", "exact_k", "quantile"),
    "entropy_policy": ("current", "old"),
}


@pytest.mark.parametrize("field", CHOICES)
@pytest.mark.parametrize("value", ["best", "", "TOP", 3, ["top"]])
def test_unknown_choices(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        SelectionConfig(**{field: value})
    assert error.value.message == f"selection.{field}={value} is not one of {', '.join(CHOICES[field])}"
    assert error.value.hint


@pytest.mark.parametrize("field", CHOICES)
@pytest.mark.parametrize("value", ["\x1b[31mtop", "top\n", "t" * 4000])
def test_an_unknown_choice_is_one_line_that_no_terminal_obeys(field: str, value: str) -> None:
    with pytest.raises(ConfigError) as error:
        SelectionConfig(**{field: value})
    assert error.value.message.isprintable() and len(error.value.message) < 200


def test_a_close_name_is_told() -> None:
    with pytest.raises(ConfigError) as error:
        SelectionConfig(tokens="botom")
    assert "did you mean bottom?" in error.value.hint


@pytest.mark.parametrize("field", ["preset", "tokens"])
def test_a_choice_that_no_preset_makes_cannot_be_left_out(field: str) -> None:
    with pytest.raises(ConfigError, match=f"selection.{field}=None is not one of"):
        SelectionConfig(**{field: None})


@pytest.mark.parametrize(
    ("wrong", "ratios"),
    [
        ("outside (0, 1]", [0, -1e-9, 1.0000001]),
        ("not a finite number", [math.inf, -math.inf, math.nan]),
        ("not a number", ["0.2", None, True]),
    ],
)
def test_ratios(wrong: str, ratios: list[object]) -> None:
    for ratio in ratios:
        with pytest.raises(ConfigError) as error:
            SelectionConfig(ratio=ratio)
        assert error.value.message == f"selection.ratio={ratio} is {wrong}"
        assert "in (0, 1]; the default is 0.2" in error.value.hint


@pytest.mark.parametrize("seed", [0.5, "0", None, True])
def test_seeds(seed: object) -> None:
    with pytest.raises(ConfigError, match=f"selection.seed={seed} is not a whole number"):
        SelectionConfig(seed=seed)


def test_every_combination_of_choices_is_a_selection() -> None:
    """So that `selection.tokens=random` makes the control arm of any recipe."""
    entropy, mask = torch.rand(2, 30, generator=torch.Generator().manual_seed(0)), torch.ones(2, 30, dtype=torch.bool)
    for values in itertools.product(*CHOICES.values()):
        config = SelectionConfig(**dict(zip(CHOICES, values, strict=True)), ratio=0.3)
        assert select_tokens(entropy, mask, config).selected == (60 if config.tokens == "all" else 18)


def test_the_columns_of_one_mini_batch() -> None:
    entropy, mask = torch.rand(2, 3), torch.ones(2, 3, dtype=torch.bool)
    for name in ("segments", "token_ids"):
        with pytest.raises(SelectionError, match=rf"entropy has shape \[2, 3\], {name} \[6\]"):
            select_tokens(entropy, mask, SelectionConfig(), **{name: torch.zeros(6, dtype=torch.int64)})
        with pytest.raises(SelectionError, match=f"{name} is torch.float32, not an integer type"):
            select_tokens(entropy, mask, SelectionConfig(), **{name: torch.zeros(2, 3)})
        with pytest.raises(SelectionError, match=f"{name} is torch.bool, not an integer type"):
            select_tokens(entropy, mask, SelectionConfig(), **{name: mask})
    with pytest.raises(SelectionError, match=r"response_mask is torch.int64, not bool"):
        select_tokens(entropy, mask.long(), SelectionConfig())


def test_numbers_that_number_nothing() -> None:
    entropy, mask = torch.rand(3), torch.ones(3, dtype=torch.bool)
    for scope in ("microbatch_global", "microbatch", "sequence"):
        with pytest.raises(SelectionError, match="segment -4 is negative"):
            select_tokens(entropy, mask, SelectionConfig(scope=scope), segments=torch.tensor([0, -4, 2]))
    with pytest.raises(SelectionError, match=f"segment {2**20} is more than the {2**20} that ranks can cut together"):
        select_tokens(entropy, mask, SelectionConfig(scope="microbatch_global"), segments=torch.tensor([0, 2**20, 1]))
    for tolerance in (-1e-5, math.nan, math.inf):
        with pytest.raises(SelectionError, match=r"tie_tolerance=.* is not a distance"):
            select_tokens(entropy, mask, SelectionConfig(), tie_tolerance=tolerance)


def test_nan_is_named_by_its_place_among_all_tokens() -> None:
    entropy = torch.tensor([[math.nan, 1.0, 2.0], [math.nan, 0.5, math.nan]])
    mask = torch.tensor([[False, True, True], [False, True, True]])
    for scope in ("minibatch", "microbatch", "sequence"):
        with pytest.raises(SelectionError, match="value 5 of rank 0 is NaN"):
            select_tokens(entropy, mask, SelectionConfig(scope=scope))
    for tokens in ("random", "all"):  # entropies decide nothing
        assert select_tokens(entropy, mask, SelectionConfig(tokens=tokens)).candidates == 4


def test_one_number_is_a_mini_batch() -> None:
    for scope in CHOICES["scope"]:
        found = select_tokens(torch.tensor(0.5), torch.tensor(True), SelectionConfig(scope=scope))
        assert (found.mask.item(), found.threshold, found.selected) == (True, 0.5, 1)
