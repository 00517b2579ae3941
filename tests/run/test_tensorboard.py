"""TensorBoard shows every finite metric of a run once, under its name, also of a run that was resumed."""

import math
from pathlib import Path

import pytest

from megatron_fork.run.folder import RunFolder
from megatron_fork.run.metric_names import PeerNames

pytest.importorskip("tensorboard")


def shown(folder: Path, stage: str) -> dict[str, list[tuple[int, float]]]:
    """Each tag's steps and values, as TensorBoard reads the event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard" / stage), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(each.step, each.value) for each in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def opened(path: Path) -> RunFolder:
    folder = RunFolder(path, writes=True, tensorboard=True, peer_names=PeerNames(("verl",)))
    folder.begin()
    return folder


def test_what_metrics_hold_is_shown(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    for step in (1, 2):
        folder.metrics("train", step, {"entropy/mean": step / 4, "selection/threshold": math.nan, "time/step": 2.0})
    folder.metrics("evaluation", 2, {"pass_rate": 0.5})
    folder.close()
    train = shown(tmp_path, "train")
    assert train["entropy/mean"] == [(1, 0.25), (2, 0.5)] == train["actor/entropy"]
    assert "selection/threshold" not in train and train["timing_s/step"] == [(1, 2.0), (2, 2.0)]
    assert shown(tmp_path, "evaluation") == {"pass_rate": [(2, 0.5)]}


def test_steps_that_a_resumed_run_repeats_are_shown_once(tmp_path: Path) -> None:
    """Each stage counts its own steps: what is forgotten of one is not of another."""
    folder = opened(tmp_path)
    folder.metrics("sft", 800, {"loss": 1.0})
    for step in (1, 2, 3):
        folder.metrics("train", step, {"loss": float(step)})
    folder.close()
    folder = opened(tmp_path)
    folder.forget(after=1, evaluations_after=0)
    for step in (2, 3):
        folder.metrics("train", step, {"loss": 10.0 * step})
    folder.close()
    assert shown(tmp_path, "train") == {"loss": [(1, 1.0), (2, 20.0), (3, 30.0)]}
    assert shown(tmp_path, "sft") == {"loss": [(800, 1.0)]}
