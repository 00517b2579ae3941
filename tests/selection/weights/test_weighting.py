"""A weighting multiplies what those before it left; what it cannot mean is one line with the field."""

import re
import sys
from pathlib import Path

import pytest
import torch
from support.weighed import choose, mini_batch

from megatron_fork.errors import ConfigError, SelectionError
from megatron_fork.selection import ChosenTokens, SelectionConfig, Weighed, Weighting, select_tokens


def own(name: str) -> str:
    return f"{__name__}:{name}"


def by_place(tokens: ChosenTokens) -> Weighed:
    """0 for the first token of a response, then 1, 2, ..."""
    return Weighed(tokens.needed("place").float(), {"tokens": tokens.sums(tokens.chosen.sum())[0]})


def every_second(tokens: ChosenTokens) -> Weighed:
    return Weighed(2.0 * (tokens.needed("place") % 2 == 0).float())


sampled = Weighting(every_second, samples=True)


def negative(tokens: ChosenTokens) -> Weighed:
    return Weighed(-torch.ones_like(tokens.entropy))


def not_a_number(tokens: ChosenTokens) -> Weighed:
    return Weighed(tokens.entropy * torch.nan)


def too_short(tokens: ChosenTokens) -> Weighed:
    return Weighed(tokens.entropy[:1])


def no_weights(tokens: ChosenTokens) -> torch.Tensor:
    return tokens.entropy


def test_without_weights_nothing_is_weighed() -> None:
    found = choose(mini_batch(0), SelectionConfig())
    assert found.weight is None and found.counted is None and not found.measures


@pytest.mark.parametrize("tokens", ["top", "bottom", "random", "all"])
def test_it_weighs_the_chosen_tokens(tokens: str) -> None:
    batch = mini_batch(1)
    plain = choose(batch, SelectionConfig(tokens=tokens))
    found = choose(batch, SelectionConfig(tokens=tokens, weights=[own("by_place")]))
    expected = batch["place"].float() * plain.mask
    assert torch.equal(found.weight, expected) and torch.equal(found.mask, expected > 0)
    assert found.counted is None and found.candidates == plain.candidates
    assert found.selected == int(found.mask.sum()) < plain.selected
    assert found.measures["tokens"] == plain.selected
    assert found.measures["by_place_kept"] == pytest.approx(found.selected / plain.selected)


@pytest.mark.parametrize("order", [["by_place", "sampled"], ["sampled", "by_place"]])
def test_what_is_sampled_away_is_still_counted_and_is_sampled_last(order: list[str]) -> None:
    batch = mini_batch(2)
    found = choose(batch, SelectionConfig(tokens="all", weights=[own(name) for name in order]))
    place, candidate = batch["place"], batch["candidate"]
    assert torch.equal(found.counted, candidate & (place > 0))
    assert torch.equal(found.mask, found.counted & (place % 2 == 0))
    assert torch.equal(found.weight, 2.0 * place * found.mask)


@pytest.mark.parametrize("name", ["negative", "not_a_number", "too_short", "no_weights"])
def test_weights_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(SelectionError) as error:
        choose(mini_batch(3), SelectionConfig(tokens="all", weights=[own(name)]))
    assert f"{own(name)} does not give every chosen token a finite weight" in error.value.message


def a_tensor(tokens: ChosenTokens) -> Weighed:
    return Weighed(tokens.needed("place").float(), {"mean": tokens.entropy.mean()})  # type: ignore[dict-item]


def test_what_it_measures_are_numbers() -> None:
    with pytest.raises(SelectionError, match="measures mean, which is no number"):
        choose(mini_batch(3), SelectionConfig(tokens="all", weights=[own("a_tensor")]))


def test_two_of_one_name_are_logged_apart() -> None:
    other = "support.weighed:by_place"
    found = choose(mini_batch(1), SelectionConfig(tokens="all", weights=[own("by_place"), other]))
    assert {"by_place_kept", "support.weighed.by_place_kept"} <= found.measures.keys()


@pytest.mark.parametrize("name", ["m2po", "stapo", "surprisal_band"])
def test_a_log_prob_that_is_no_number_is_refused(name: str) -> None:
    batch = mini_batch(5)
    batch["logprob"][int(batch["candidate"].nonzero()[0])] = torch.nan
    with pytest.raises(SelectionError, match="logprob is NaN at a chosen token"):
        choose(batch, SelectionConfig(tokens="all", weights=[name]))


def test_only_the_weights_of_chosen_tokens_count() -> None:
    """Values elsewhere are arbitrary."""
    batch = mini_batch(4)
    batch["entropy"][~batch["candidate"]] = torch.nan
    entropy = choose(batch, SelectionConfig(tokens="all", weights=[own("entropy_itself")])).weight
    assert torch.equal(entropy, batch["entropy"].where(batch["candidate"], 0.0))


def entropy_itself(tokens: ChosenTokens) -> Weighed:
    return Weighed(tokens.entropy)


def test_a_column_that_is_not_given_is_named() -> None:
    with pytest.raises(SelectionError, match=r"needs the column place, which is not given") as error:
        select_tokens(torch.ones(3), torch.ones(3, dtype=torch.bool), SelectionConfig(weights=[own("by_place")]))
    assert "selection.weights=[]" in error.value.hint


def test_unknown_names_and_names_given_twice_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"selection\.weights=best is not one of"):
        SelectionConfig(weights=["best"])
    with pytest.raises(ConfigError, match=r"twice"):
        SelectionConfig(weights=[own("by_place"), own("by_place")])
    with pytest.raises(ConfigError, match=r"selection\.weights=top is not a list"):
        SelectionConfig(weights="top")  # type: ignore[arg-type]


def test_the_example_of_the_docs_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[3] / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n# my_weights\.py\n(.*?)```", text, re.S)
    (tmp_path / "my_weights.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = choose(mini_batch(5), SelectionConfig(tokens="all", weights=["my_weights:late_tokens_less"]))
    sys.modules.pop("my_weights")
    assert float(found.weight[found.mask].mean()) == pytest.approx(1.0) and found.mask.any()
    assert 0.0 < found.measures["mean_weight"] < 1.0
