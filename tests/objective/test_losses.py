"""A loss is an entry of one table, or stands outside the package: the examples of docs/extending.md train."""

import re
import sys
from pathlib import Path

import pytest
import torch
from support.commands import QUICKSTART, run

from megatron_fork.errors import ConfigError
from megatron_fork.objective import ObjectiveConfig, loss_named, needs_whole_sequences, policy_loss
from megatron_fork.objective.losses import LOSSES
from megatron_fork.recipe import is_custom

PROJECT = Path(__file__).parent.parent.parent
SMALL = (
    "sft.steps=2",
    "train.steps=1",
    "train.prompts_per_step=2",
    "train.prompts_per_mini_batch=1",
    "data.held_out=8",
)
SMALLER = ("rollout.samples=4", "rollout.dynamic_sampling=false", "evaluation.samples=1", "run.checkpoint_every=0")


@pytest.fixture
def my_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (code,) = re.findall(r"```python\n# my_losses\.py\n(.*?)```", (PROJECT / "docs" / "extending.md").read_text(), re.S)
    (tmp_path / "my_losses.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_losses", None)
    loss_named.cache_clear()


def columns(count: int = 24) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    old = -torch.rand(count, generator=generator)
    return {
        "logprob": (old + 0.3 * torch.randn(count, generator=generator)).requires_grad_(),
        "old_logprob": old,
        "advantage": torch.randn(count, generator=generator),
        "mask": torch.rand(count, generator=generator) < 0.8,
        "sequence": torch.arange(count) // 16,
    }


@pytest.mark.parametrize("name", LOSSES)
def test_an_entry_stands_in_the_file_of_its_name(name: str) -> None:
    assert LOSSES[name].surrogate == f"megatron_fork.objective.losses.{name}:{name}"
    assert (PROJECT / "megatron_fork" / "objective" / "losses" / f"{name}.py").is_file()


def test_one_of_your_own_is_what_it_computes(my_losses: Path) -> None:
    made = columns()
    halved = made["advantage"].where(made["advantage"] > 0, 0.5 * made["advantage"])
    expected = policy_loss(**(made | {"advantage": halved}), config=ObjectiveConfig(), normalizer=3.0)
    found = policy_loss(**made, config=ObjectiveConfig(loss="my_losses:gentle"), normalizer=3.0)
    assert torch.equal(found.loss, expected.loss)
    assert found.metrics.keys() == expected.metrics.keys()


def test_it_may_say_what_it_needs(my_losses: Path) -> None:
    config = ObjectiveConfig(loss="my_losses:by_response")
    assert needs_whole_sequences(config)
    made = columns()
    gentle = policy_loss(**made, config=ObjectiveConfig(loss="my_losses:gentle"), normalizer=3.0).loss
    penalty = (made["logprob"] - made["old_logprob"])[made["mask"]].square()
    _, place, count = made["sequence"][made["mask"]].unique(return_inverse=True, return_counts=True)
    assert len(count.unique()) == 2 and count.min() <= 8 < count.max()
    expected = gentle + (0.1 * penalty * (count[place] > 8)).sum() / 3.0
    assert torch.allclose(policy_loss(**made, config=config, normalizer=3.0).loss, expected)


@pytest.mark.parametrize("name", ["gentle", "by_response"])
def test_it_trains(my_losses: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}:{my_losses}")
    folder = my_losses / "run"
    code, said = run(
        "train", str(QUICKSTART), f"run.folder={folder}", f"objective.loss=my_losses:{name}", *SMALL, *SMALLER
    )
    assert code == 0, said
    assert f"loss: my_losses:{name}" in (folder / "resolved.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("my_losses:nothing", "my_losses has no nothing"),
        ("my_losses:PROBE", "objective.loss=my_losses:PROBE is of type int, which cannot be used as loss"),
        ("no_such_module_here:f", "cannot be imported"),
        ("my_broken:f", "cannot be imported: ValueError by me"),
        ("pppo", "objective.loss=pppo is not one of ppo"),
    ],
)
def test_what_is_no_loss_is_told_by_name(my_losses: Path, name: str, told: str) -> None:
    (my_losses / "my_broken.py").write_text("raise ValueError('by me')\n")
    with (my_losses / "my_losses.py").open("a") as file:
        file.write("\nPROBE = 3\n")
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        loss_named(name)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["a:b", "a.b:c", "_a:_b"])
def test_names_outside_the_package(name: str) -> None:
    assert is_custom(name)
    assert ObjectiveConfig(loss=name, clip_low=3.0).loss == name


@pytest.mark.parametrize("name", ["", "a", "a:", ":b", "a:b:c", "a b:c", "a:b.c", "../a:b"])
def test_no_names(name: str) -> None:
    with pytest.raises(ConfigError, match=r"objective\.loss="):
        ObjectiveConfig(loss=name)
