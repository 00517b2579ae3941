"""A recipe, a run's folder, one of its checkpoints and a model's folder all mean settings whose model has the named weights."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.commands import QUICKSTART, TINY, run

from megatron_fork.errors import ConfigError
from megatron_fork.experience import Batch, Demonstration, Prompt
from megatron_fork.run import Display, checkpoint_of, config_of, load_policy, model_context


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the quickstart in little, with a warm start, a checkpoint and a model."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    code, output = run("train", str(QUICKSTART), *TINY, "train.steps=2", f"run.folder={folder}")
    assert code == 0, output
    return folder


def log_probs(place: Path, checkpoint: str | None = None) -> torch.Tensor:
    config = config_of(place, checkpoint=checkpoint)
    with model_context(replace(config, run=replace(config.run, folder=None)), Display(speaks=False)) as context:
        policy = load_policy(context)
        prompt = Prompt(0, "", tuple(context.tokenizer("from 7 to 31 :")["input_ids"]), "")
        return policy.statistics(Batch([Demonstration(0, prompt, tuple(range(5, 15)))]))[0]


def test_every_way_to_the_same_weights(finished: Path) -> None:
    of_run = log_probs(finished)
    assert torch.equal(of_run, log_probs(finished / "model"))
    assert torch.allclose(of_run, log_probs(finished, "step-2"), atol=1e-6)
    assert torch.equal(log_probs(finished, "step-2"), log_probs(finished, "step-000002"))
    of_warm_start = log_probs(finished, "warm_start")
    assert not torch.equal(of_run, of_warm_start)
    assert all(math.isfinite(value) for value in of_warm_start.tolist())


def test_an_unfinished_run_has_its_checkpoint(finished: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for name in ("resolved.yaml", "checkpoints", "warm_start"):
        (unfinished / name).symlink_to(finished / name)
    found = config_of(unfinished).model
    assert checkpoint_of(found) == unfinished / "checkpoints" / "step-000002"
    (unfinished / "checkpoints").unlink()
    assert config_of(unfinished).model.path == str(unfinished / "warm_start")
    (unfinished / "warm_start").unlink()
    with pytest.raises(ConfigError, match="has no model"):
        config_of(unfinished)


def test_settings_of_a_run_and_of_a_model(finished: Path) -> None:
    of_run = config_of(finished, ["rollout.top_p=0.9"])
    assert (of_run.rollout.top_p, of_run.data.held_out, of_run.sft.steps) == (0.9, 8, 0)
    of_model = config_of(finished / "model", ["seed=3"])
    assert (of_model.seed, of_model.model.path, of_model.run.name) == (3, str(finished / "model"), "model")
    assert config_of(QUICKSTART).sft.steps == 800


@pytest.mark.parametrize(
    ("place", "words", "checkpoint", "message"),
    [
        (lambda run: run / "nothing", [], None, "neither a recipe nor the folder of a run or a model"),
        (lambda run: run / "traces", [], None, "neither a recipe nor the folder of a run or a model"),
        (lambda run: run / "model", [], "step-2", "--checkpoint=step-2 with .*model, which is no run's folder"),
        (lambda run: run / "model", ["model.path=x"], None, r"model\.path=x with .*, which is a model of its own"),
        (lambda run: run, ["model.hf_config=null"], None, r"model\.hf_config=null with"),
        (lambda run: run, [], "step-7", "has no step-7"),
        (lambda run: run, [], "../model", r"has no \.\./model"),
    ],
)
def test_what_is_no_place(
    finished: Path, place: Callable[[Path], Path], words: list[str], checkpoint: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        config_of(place(finished), words, checkpoint=checkpoint)
    assert refused.value.hint
