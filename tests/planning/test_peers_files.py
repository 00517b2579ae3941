"""A file that never ends is not opened, and a recipe that cannot be written is told before anything is printed."""

import os
from pathlib import Path

import pytest

from megatron_fork.cli.coming_from import show_translation
from megatron_fork.errors import ConfigError


def test_a_pipe_or_a_device_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for file in (tmp_path / "pipe.yaml", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="is no ordinary file"):
            show_translation("verl", file)


@pytest.mark.parametrize("place", ["nowhere/recipe.yaml", "verl.sh/recipe.yaml", "x" * 255])
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "verl.sh"
    file.write_text(
        "python3 -m verl.trainer.main_ppo data.train_batch_size=64 actor_rollout_ref.actor.ppo_mini_batch_size=32 "
        "actor_rollout_ref.rollout.n=4 algorithm.adv_estimator=grpo"
    )
    with pytest.raises(ConfigError, match=r"--write=.* cannot be written") as caught:
        show_translation("verl", file, write=tmp_path / place)
    assert caught.value.hint and not capsys.readouterr().out


FILES = {
    "verl": ("settings.sh", "python3 -m verl.trainer.main_ppo data.train_batch_size=64 actor_rollout_ref.rollout.n=4"),
    "slime": ("settings.sh", "python3 train.py --rollout-batch-size 32 --n-samples-per-prompt 8 --lr 1e-6"),
    "nemo-rl": (
        "settings.yaml",
        "grpo: {num_prompts_per_step: 32, num_generations_per_prompt: 16}\nloss_fn: {ratio_clip_c: null}",
    ),
    "trl": ("settings.yaml", "num_generations: 8\nmax_completion_length: 4096\nlearning_rate: 1.0e-6"),
}


@pytest.mark.parametrize("asked", FILES)
@pytest.mark.parametrize("written", FILES)
def test_a_file_of_another_trainer_is_told(
    asked: str, written: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not shown as a file in which nothing has a counterpart."""
    name, text = FILES[written]
    (tmp_path / name).write_text(text)
    if asked == written:
        show_translation(asked, tmp_path / name)
        return
    with pytest.raises(ConfigError) as told:
        show_translation(asked, tmp_path / name)
    assert not capsys.readouterr().out and told.value.hint
    assert "no setting of" not in told.value.message or told.value.hint == f"give --from={written}"
