"""A loss is an entry of one table, or stands outside the package: the examples of docs/extending.md train."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from support.commands import QUICKSTART, metrics_of, run

from megatron_fork.errors import ConfigError, ExtensionError
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


BAD_LOSSES = """
from megatron_fork.objective import Loss, clipped
import torch

def _ppo(tokens):
    return clipped(tokens.ratio, tokens.advantage, 0.2, 0.28, 10.0)

def _with(**columns):
    return lambda tokens: _ppo(tokens)._replace(**{name: make(_ppo(tokens).value) for name, make in columns.items()})

def raises(tokens): raise KeyError("no column\\nof this name")
def ends(tokens): raise SystemExit(0)
def opens(tokens): open("/no/such/file")
def takes_nothing(): return None
def nothing(tokens): return None
def tensor(tokens): return tokens.ratio
mean = _with(value=lambda value: value.mean())
total = _with(value=lambda value: value.sum()[None])
short = _with(value=lambda value: value[:-1])
column = _with(value=lambda value: value[:, None])
double = _with(value=lambda value: value.double())
whole = _with(value=lambda value: value.long())
nan = _with(value=lambda value: value * float("nan"))
infinite = _with(value=lambda value: value / 0)
constant = _with(value=lambda value: value.detach())
penalty_mean = _with(penalty=lambda value: value.mean())
penalty_number = _with(penalty=lambda value: 0.1)
shares = _with(kl_share=lambda value: value[:3])
no_flag = _with(clipped_low=lambda value: None)
flags = _with(dual_clipped=lambda value: value)
"""


@pytest.fixture
def bad_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bad_losses.py").write_text(BAD_LOSSES)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("bad_losses", None)
    loss_named.cache_clear()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("raises", r"failed: KeyError 'no column\\nof this name' \(.*bad_losses\.py, line \d+\)"),
        ("ends", "failed: SystemExit 0"),
        ("opens", "failed: FileNotFoundError"),
        ("takes_nothing", "failed: TypeError"),
        ("nothing", "gives back NoneType"),
        ("tensor", "gives back Tensor"),
        ("mean", r"its value is \[\] torch.float32"),
        ("total", r"its value is \[1\]"),
        ("short", "its value is"),
        ("column", "its value is"),
        ("double", r"its value is \[\d+\] torch.float64"),
        ("whole", r"its value is \[\d+\] torch.int64"),
        ("nan", "its value holds a value that is not finite"),
        ("infinite", "its value holds a value that is not finite"),
        ("constant", "its value has no gradient"),
        ("penalty_mean", r"its penalty is \[\]"),
        ("penalty_number", "its penalty is float"),
        ("shares", r"its kl_share is \[3\]"),
        ("no_flag", "its clipped_low is NoneType"),
        ("flags", "its dual_clipped is"),
    ],
)
def test_what_one_of_your_own_does_wrong_is_one_line_with_its_name(bad_losses: Path, name: str, told: str) -> None:
    """A sum in place of one value a token would train all the same, on something else."""
    with pytest.raises(ExtensionError, match=rf"^objective\.loss=bad_losses:{name}:? ?{told}") as caught:
        policy_loss(**columns(), config=ObjectiveConfig(loss=f"bad_losses:{name}"), normalizer=3.0)
    assert caught.value.hint and caught.value.is_of_one_rank


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("Loss(3)", "has surrogate=3, which is no function"),
        ("Loss('no_such_module_here:f')", "has surrogate=no_such_module_here:f, which is no function"),
        ("Loss('bad_losses:BAD')", "has surrogate=bad_losses:BAD, which is no function"),
        ("Loss(tensor, columns='sequence')", "columns=sequence"),
        ("Loss(tensor, columns=('tokens',))", "columns=tokens"),
        ("Loss(tensor, trains='everything')", "trains=everything"),
        ("Loss(tensor, covers='low')", "covers=low"),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused_before_the_start(bad_losses: Path, entry: str, told: str) -> None:
    with (bad_losses / "bad_losses.py").open("a") as file:
        file.write(f"\nBAD = 1\nentry = {entry}\n")
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        loss_named("bad_losses:entry")
    assert caught.value.message.startswith("objective.loss=bad_losses:entry") and caught.value.hint


@pytest.mark.parametrize(
    "leaves", ["raise SystemExit(0)", "import sys; sys.exit(3)", "raise ValueError('x' * 9999)", "def ("]
)
def test_a_module_that_leaves_when_it_is_imported_is_told(bad_losses: Path, leaves: str) -> None:
    """An exit code of 0 would say that the run is through."""
    (bad_losses / "my_leaving.py").write_text(leaves)
    with pytest.raises(ConfigError, match=r"^objective\.loss=my_leaving:f: my_leaving cannot be imported: ") as caught:
        loss_named("my_leaving:f")
    assert len(caught.value.message) < 500


def test_gradients_that_are_no_numbers_are_one_line(bad_losses: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root of 0 is finite, and its slope is not."""
    with (bad_losses / "bad_losses.py").open("a") as file:
        file.write("\ndef root(tokens): return _ppo(tokens)._replace(penalty=(tokens.log_ratio * 0).abs().sqrt())\n")
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}:{bad_losses}")
    words = (f"run.folder={bad_losses / 'run'}", "objective.loss=bad_losses:root", *SMALL, *SMALLER)
    code, said = run("train", str(QUICKSTART), *words, "objective.entropy_coef=0.01", "train.max_skipped_updates=0")
    assert code == 1 and "error: loss or gradients of an update of the policy are NaN or infinite" in said, said
    assert "Traceback" not in said


def test_updates_that_are_no_numbers_are_left_out_up_to_a_limit(
    bad_losses: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count of those in a row outlives the run, which ends with its state saved and goes on from there."""
    with (bad_losses / "bad_losses.py").open("a") as file:
        file.write("\ndef root(tokens): return _ppo(tokens)._replace(penalty=(tokens.log_ratio * 0).abs().sqrt())\n")
    monkeypatch.setenv("PYTHONPATH", f"{PROJECT}:{bad_losses}")
    folder = bad_losses / "run"
    words = (f"run.folder={folder}", "objective.loss=bad_losses:root", "objective.entropy_coef=0.01", *SMALL, *SMALLER)
    shape = ("train.steps=4", "train.prompts_per_step=4", "train.prompts_per_mini_batch=2")  # two updates a step
    code, said = run("train", str(QUICKSTART), *words, *shape, "train.max_skipped_updates=2")
    assert code == 1 and "3 updates in a row of the policy" in said and "Traceback" not in said, said
    assert "step 2, update 1 of 2: not applied to the policy: its loss is " in said
    assert re.search(r"gradient norm (nan|inf); trajectories \d[-\d, ]* of the step", said)
    assert list(folder.glob("checkpoints/step-000001*/manifest.json"))
    (step,) = metrics_of(folder, "train")
    assert step["update/skipped"] == 2 and "loss" not in step

    code, said = run("train", str(QUICKSTART), *words, *shape, "train.max_skipped_updates=4")
    assert code == 1 and "5 updates in a row of the policy" in said, said
    assert "not applied" in said and "step 2, update 1 of 2" not in said
    updates = [json.loads(line) for line in (folder / "updates.jsonl").read_text().splitlines()]
    assert [(each["step"], each["update"], each["update/skipped"]) for each in updates] == [
        (1, 0, 1.0), (1, 1, 1.0), (2, 0, 1.0), (2, 1, 1.0)
    ]  # fmt: skip
