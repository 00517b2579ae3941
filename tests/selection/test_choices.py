"""A score of the user's own is cut as entropies are: the exact global top k, under every rule, scope and layout.

The examples of docs/extending.md train.
"""

import ast
import itertools
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from support.commands import QUICKSTART, run
from support.ranks import run_on_ranks

from megatron_fork.config import load_config
from megatron_fork.errors import ConfigError, ExtensionError, SelectionError
from megatron_fork.recipe import part
from megatron_fork.run import check
from megatron_fork.selection import SelectionConfig, TokenChoice, TokenColumns, select_tokens, token_choice
from megatron_fork.selection.choices import RULES, SCOPES, TOKENS
from megatron_fork.selection.config import Rule, Scope

PROJECT = Path(__file__).parent.parent.parent
SMALL = (
    *("sft.steps=2", "train.steps=1", "train.prompts_per_step=2", "train.prompts_per_mini_batch=1", "data.held_out=8"),
    *("rollout.samples=4", "rollout.dynamic_sampling=false", "evaluation.samples=1", "run.checkpoint_every=0"),
)


def own(name: str) -> str:
    return f"{__name__}:{name}"


def given_score(tokens: TokenColumns) -> torch.Tensor:
    return tokens.needed("score")


def rank_of_score(tokens: TokenColumns) -> torch.Tensor:
    """Integers of the same order."""
    return (tokens.needed("score") * 8).nan_to_num(nan=99).to(torch.int64)


def of_another_shape(tokens: TokenColumns) -> torch.Tensor:
    return tokens.entropy[:1]


def no_tensor(tokens: TokenColumns) -> float:
    return 0.5


def not_a_number(tokens: TokenColumns) -> torch.Tensor:
    return tokens.entropy.log() - tokens.entropy.log()


lowest_score = TokenChoice(given_score, lowest=True)
lowest_rank = TokenChoice(rank_of_score, lowest=True)
entropy_after_all = TokenChoice(lambda tokens: tokens.entropy, by_entropy=True)


@pytest.fixture
def my_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    text = (PROJECT / "docs" / "extending.md").read_text()
    (code,) = re.findall(r"```python\n# my_choices\.py\n(.*?)```", text, re.S)
    (tmp_path / "my_choices.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_choices", None)
    token_choice.cache_clear()


def test_tables_and_settings_name_the_same() -> None:
    assert get_args(Scope) == tuple(SCOPES) and get_args(Rule) == tuple(RULES)
    assert all(choice.score is None or callable(part(choice.score)) for choice in TOKENS.values())


def test_no_file_asks_for_a_choice_by_its_name() -> None:
    """Fields of the selection are read through the tables alone."""
    found = []
    for path in (PROJECT / "megatron_fork").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and any(
                isinstance(word, ast.Attribute) and word.attr in ("tokens", "scope", "rule") for word in ast.walk(node)
            ):
                words = {word.value for word in ast.walk(node) if isinstance(word, ast.Constant)}
                if words & {*TOKENS, *SCOPES, *RULES}:
                    found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    assert not found


@pytest.mark.parametrize(("rule", "scope"), list(itertools.product(RULES, SCOPES)))
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_score_is_cut_as_entropies_are(rule: str, scope: str, data: st.DataObject) -> None:
    shape = (3, 7)
    numbers = st.lists(st.integers(-9, 9), min_size=21, max_size=21)
    score = torch.tensor(data.draw(numbers), dtype=torch.float32).view(shape) / 8
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=21, max_size=21))).view(shape)
    entropy = torch.full(shape, math.nan)  # decides nothing
    score[~mask] = math.nan  # counts nowhere
    options = {"rule": rule, "scope": scope, "ratio": data.draw(st.sampled_from([0.2, 0.5, 1.0]))}
    for chosen, as_entropy in (("given_score", "top"), ("lowest_score", "bottom")):
        found = select_tokens(entropy, mask, SelectionConfig(tokens=own(chosen), **options), columns={"score": score})
        expected = select_tokens(score, mask, SelectionConfig(tokens=as_entropy, **options))
        assert torch.equal(found.mask, expected.mask) and math.isnan(found.threshold)
        assert (found.selected, found.candidates) == (expected.selected, expected.candidates)
    for chosen, as_entropy in (("rank_of_score", "top"), ("lowest_rank", "bottom")):
        found = select_tokens(entropy, mask, SelectionConfig(tokens=own(chosen), **options), columns={"score": score})
        expected = select_tokens(score, mask, SelectionConfig(tokens=as_entropy, **{**options, "rule": "exact_k"}))
        assert torch.equal(found.mask, expected.mask)


def test_a_score_that_is_the_entropy_has_its_threshold() -> None:
    entropy, mask = torch.rand(40, generator=torch.Generator().manual_seed(1)), torch.ones(40, dtype=torch.bool)
    top = select_tokens(entropy, mask, SelectionConfig())
    found = select_tokens(entropy, mask, SelectionConfig(tokens=own("entropy_after_all")))
    assert torch.equal(found.mask, top.mask) and found.threshold == top.threshold


def select_share(names: tuple[str, ...], *, alone: bool = False) -> list[list[int]]:
    """Ids that each choice marks on this rank, of which the last has no token; or, `alone`, of all tokens."""
    generator = torch.Generator().manual_seed(3)
    score = torch.randint(-5, 5, (60,), generator=generator) / 8
    ids = torch.arange(60)
    if not alone:
        ids = ids[ids % 2 == dist.get_rank()]
    group = None if alone else dist.group.WORLD
    marked = []
    for name in names:
        found = select_tokens(
            torch.zeros(len(ids)),
            ids % 7 > 0,
            SelectionConfig(tokens=name, rule="exact_k", ratio=0.3),
            group=group,
            token_ids=ids,
            columns={"score": score[ids]},
        )
        marked.append(ids[found.mask].tolist())
    return marked


@pytest.mark.slow
def test_the_same_tokens_however_they_lie_on_ranks() -> None:
    names = tuple(own(name) for name in ("given_score", "lowest_score", "rank_of_score", "lowest_rank"))
    shares = run_on_ranks(select_share, 3, names)
    for place, whole in enumerate(select_share(names, alone=True)):
        assert sorted(token for share in shares for token in share[place]) == whole


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("of_another_shape", r"scores 4 tokens with \[1\] torch.float32"),
        ("no_tensor", "scores 4 tokens with float"),
        ("not_a_number", "not_a_number: value 0 of rank 0 is NaN"),
        ("given_score", "needs the column score, which is not given"),
    ],
)
def test_what_is_no_score_is_told_by_name(name: str, told: str) -> None:
    with pytest.raises(SelectionError, match=told) as caught:
        select_tokens(torch.zeros(4), torch.ones(4, dtype=torch.bool), SelectionConfig(tokens=own(name)))
    assert f"selection.tokens={own(name)}" in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("my_choices:nothing", "my_choices has no nothing"),
        ("no_such_module_here:f", "cannot be imported: ModuleNotFoundError"),
        ("my_choices:TOKENS", "is of type int, which cannot be used as choice of tokens"),
    ],
)
def test_doctor_and_train_refuse_what_your_module_lacks(my_choices: Path, name: str, told: str) -> None:
    with (my_choices / "my_choices.py").open("a") as file:
        file.write("\nTOKENS = 3\n")
    config = load_config(QUICKSTART, [f"selection.tokens={name}"])
    assert "my_choices" not in sys.modules
    with pytest.raises(ConfigError, match=re.escape(told)):
        check(config, ranks=1)


def test_the_examples_are_what_they_say(my_choices: Path) -> None:
    entropy, logprob = torch.tensor([0.0, 1.0, 2.0, 0.5]), torch.tensor([-0.1, -3.0, -0.2, -9.0])
    mask = torch.ones(4, dtype=torch.bool)
    for name, expected in (("surprising_forks", [1, 3]), ("unlikely", [1, 3])):
        config = SelectionConfig(tokens=f"my_choices:{name}", ratio=0.5)
        found = select_tokens(entropy, mask, config, columns={"logprob": logprob})
        assert found.mask.nonzero()[:, 0].tolist() == expected


@pytest.mark.parametrize("name", ["surprising_forks", "unlikely"])
def test_the_examples_train(my_choices: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}:{my_choices}")
    folder = my_choices / "run"
    code, said = run("train", str(QUICKSTART), f"run.folder={folder}", f"selection.tokens=my_choices:{name}", *SMALL)
    assert code == 0, said
    assert f"tokens: my_choices:{name}" in (folder / "resolved.yaml").read_text()


def fails(tokens: TokenColumns) -> torch.Tensor:
    raise ValueError("no\nscore")


def leaves(tokens: TokenColumns) -> torch.Tensor:
    raise SystemExit(0)


def writes_entropy(tokens: TokenColumns) -> torch.Tensor:
    return tokens.entropy.fill_(1.0)


def writes_candidates(tokens: TokenColumns) -> torch.Tensor:
    tokens.candidate.logical_and_(tokens.entropy > 0.5)
    return tokens.entropy


def writes_a_column(tokens: TokenColumns) -> torch.Tensor:
    return tokens.needed("logprob").neg_()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fails", "failed: ValueError no score"),
        ("leaves", "failed: SystemExit 0"),
        ("writes_entropy", "changes entropy in place"),
        ("writes_candidates", "changes candidate in place"),
        ("writes_a_column", "changes logprob in place"),
    ],
)
def test_what_a_choice_of_your_own_does_wrong_is_one_line_with_its_name(name: str, told: str) -> None:
    """What it writes into would be trained on, and be the mask of the updates to come."""
    entropy, mask = torch.rand(40, generator=torch.Generator().manual_seed(1)), torch.ones(40, dtype=torch.bool)
    with pytest.raises(ExtensionError, match=rf"^selection\.tokens={own(name)} {told}") as caught:
        select_tokens(entropy, mask, SelectionConfig(tokens=own(name)), columns={"logprob": -entropy})
    assert caught.value.hint and caught.value.is_of_one_rank


no_score = TokenChoice(3)
no_such_score = TokenChoice("no_such_module_here:f")


@pytest.mark.parametrize("name", ["no_score", "no_such_score"])
def test_a_score_that_is_no_function_is_refused_before_the_start(name: str) -> None:
    with pytest.raises(ConfigError, match=r"has score=.*, which is no function"):
        token_choice(own(name))
