"""A run that is interrupted and started again is the uninterrupted run, bit for bit on a CPU."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import QUICKSTART, TINY, finish, metrics_of, run, start, without_times


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "objective", "sent", "exit_code"),
    [
        ("sft", [], signal.SIGUSR1, 75),
        ("train", ["train.prompts_per_mini_batch=1"], signal.SIGTERM, 75),
        (
            "train",
            ["objective.advantage=gae", "objective.kl_coef=0.01", "objective.correction=tis"],
            signal.SIGINT,
            130,
        ),
        (
            "train",
            ["rollout.max_staleness=1", "rollout.tail=stop", "rollout.batch_size=5", "objective.correction=tis"],
            signal.SIGTERM,
            75,
        ),
    ],
    ids=[
        "sft, time is nearly up",
        "train, taken away",
        "train with critic and reference, Ctrl-C",
        "train with groups under way, taken away",
    ],
)
def test_interrupt_and_resume(
    tmp_path: Path, stage: str, objective: list[str], sent: signal.Signals, exit_code: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    words = [str(QUICKSTART), *TINY, "sft.steps=20", *objective]
    code, output = run("train", *words, f"run.folder={whole}")
    assert code == 0, output

    process = start("train", *words, f"run.folder={broken}")
    wait_for_step(broken, process, stage)
    time.sleep(random.random() * 0.5)  # anywhere in a step
    os.killpg(process.pid, sent)
    code, output = finish(process)
    assert code == exit_code, output
    assert "the state is saved" in output and "resume with" in output
    assert "Traceback" not in output

    code, output = run("train", str(broken / "resolved.yaml"), f"run.folder={broken}")
    assert code == 0, output
    for each in ("sft", "train", "evaluation"):
        assert without_times(metrics_of(broken, each)) == without_times(metrics_of(whole, each))
    assert (broken / "updates.jsonl").read_text() == (whole / "updates.jsonl").read_text()
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (broken, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def wait_for_step(folder: Path, process, stage: str, limit: float = 120.0) -> None:
    """Until the first step of the stage is written."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "metrics.jsonl").is_file() and metrics_of(folder, stage):
            return
        time.sleep(0.02)
    raise AssertionError("no training step was written")


@pytest.mark.slow
def test_other_settings_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, output = run("train", str(QUICKSTART), *TINY, "train.steps=1", f"run.folder={folder}")
    assert code == 0, output
    code, output = run("train", str(folder / "resolved.yaml"), "train.steps=2", "objective.clip_high=0.5")
    assert code == 1, output
    assert "objective.clip_high" in output and "run.folder" in output
    manifest = next((folder / "checkpoints").glob("step-*/manifest.json"))
    manifest.write_text(manifest.read_text().replace('"bytes": ', '"bytes": 1'))
    code, output = run("train", str(folder / "resolved.yaml"), "train.steps=2")
    assert code == 1, output
    assert "manifest.json is damaged" in output
    assert "Traceback" not in output

    # Begun again with the same settings after all was lost but the warm start: nothing is there twice.
    shutil.rmtree(folder / "checkpoints")
    before = {stage: metrics_of(folder, stage) for stage in ("sft", "train", "evaluation")}
    code, output = run("train", str(folder / "resolved.yaml"), "train.steps=1")
    assert code == 0, output
    for stage, records in before.items():
        assert without_times(metrics_of(folder, stage)) == without_times(records)
    # And begun clean with others.
    code, output = run("train", str(folder / "resolved.yaml"), "train.steps=1", "sft.steps=2", "run.overwrite=true")
    assert code == 0, output
    assert len(metrics_of(folder, "sft")) == 2 and "overwrite: false" in (folder / "resolved.yaml").read_text()


@pytest.mark.slow
def test_a_start_that_is_refused_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    """The version that wrote a run must find its own settings there when another could not go on with it."""
    words = [str(QUICKSTART), *TINY, "sft.steps=0", "train.steps=1", f"run.folder={tmp_path}"]
    code, output = run("train", *words)
    assert code == 0, output
    (manifest,) = tmp_path.glob("checkpoints/*/manifest.json")
    manifest.write_text(manifest.read_text().replace('"format": 3', '"format": 2'))
    before = contents(tmp_path)
    code, output = run("train", *words, "train.steps=2", "run.keep_checkpoints=5")
    assert code == 1 and "format=2" in output, output
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != "lock"}
