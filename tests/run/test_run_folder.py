"""The run folder holds what the run said, in JSON that any reader takes, and wandb gets the same offline."""

import json
import math
import sys
from pathlib import Path

import pytest
from support.commands import QUICKSTART

from megatron_fork.config import AlertsConfig, load_config
from megatron_fork.errors import RunFolderError
from megatron_fork.run import check
from megatron_fork.run.folder import RunFolder, write_atomically
from megatron_fork.run.metric_names import PeerNames


def test_metrics_are_lines_of_strict_json(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", writes=True)
    folder.metrics("train", 1, {"loss": 0.5, "selection/threshold": math.nan})
    folder.metrics("evaluation", 1, {"pass_rate": math.inf})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"stage": "train", "step": 1, "loss": 0.5, "selection/threshold": None},
        {"stage": "evaluation", "step": 1, "pass_rate": None},
    ]


def test_resuming_forgets_what_comes_after(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, writes=True)
    folder.metrics("sft", 9, {"loss": 1.0})
    for step in (1, 2, 3):
        folder.metrics("train", step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "train", "st')  # the line that a killed run left unfinished
    folder.forget(after=2)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(record["stage"], record["step"]) for record in records] == [("sft", 9), ("train", 1), ("train", 2)]


def test_every_update_is_a_line_and_resuming_forgets_those_that_come_after(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, writes=True)
    for step in (1, 2):
        folder.updates(step, [{"selection/threshold": 0.5 * step}, {"selection/threshold": math.nan}])
    folder.forget(after=1)
    records = [json.loads(line) for line in (tmp_path / "updates.jsonl").read_text().splitlines()]
    assert records == [
        {"step": 1, "update": 0, "selection/threshold": 0.5},
        {"step": 1, "update": 1, "selection/threshold": None},
    ]


def test_only_the_writing_rank_touches_the_disk(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", writes=False, wandb_project="unused")
    folder.metrics("train", 1, {"loss": 0.5})
    folder.updates(1, [{"loss": 0.5}])
    folder.summary({"seed": 1})
    folder.close()
    assert not (tmp_path / "run").exists()


def test_a_refused_write_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "below", "text")


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):  # begun, and resumed
        folder = RunFolder(
            tmp_path / "run",
            writes=True,
            wandb_project="forking",
            resolved="seed: 3\n",
            peer_names=PeerNames(("verl", "nemo_rl")),
            alerts=AlertsConfig(entropy_below=0.1, steps_without_signal=0, stalled_seconds=0.0),
        )
        folder.begin()
        metrics = {"loss": 0.5, "gradient_norm": 0.25, "selection/threshold": math.nan, "entropy/mean": 0.05 * step}
        folder.metrics("train", step, metrics)
        folder.close()
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert files and {file.name for file in files} == {
        f"run-{(tmp_path / 'run' / 'wandb_run').read_text().strip()}.wandb"
    }
    written = b"".join(file.read_bytes() for file in files)
    for name in (b"train/loss", b"train/gradient_norm", b"actor/grad_norm", b"train/grad_norm"):
        assert name in written
    assert b"train/actor" not in written and b"selection/threshold" not in written
    # An alert is sent when its cause appears, not when it has gone.
    assert b"run: entropy" in written and b"step 1: entropy/mean=0.05 nats is below" in written
    assert b"step 2: entropy" not in written


@pytest.mark.parametrize(
    ("package", "setting"), [("wandb", "run.wandb=forking"), ("tensorboard", "run.tensorboard=true")]
)
def test_a_recorder_that_is_missing_is_told_before_the_start(
    package: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(QUICKSTART, [setting])
    check(config, ranks=1)
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    with pytest.raises(RunFolderError) as refused:
        check(config, ranks=1)
    assert refused.value.message == f"{setting}, but {package} is not installed"
    assert refused.value.hint == f"pip install {package}"


def test_a_folder_that_is_removed_during_the_run_is_one_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", writes=True)
    (tmp_path / "run").rmdir()
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl cannot be written: its folder was removed while the run"):
        folder.metrics("train", 1, {"loss": 0.5})
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_refused_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = load_config(QUICKSTART, [f"run.folder={tmp_path / 'file' / 'below' / 'run'}"])
    with pytest.raises(RunFolderError, match=r"^run\.folder=.* cannot be written: .*file is a file$"):
        check(config, ranks=1)
    with pytest.raises(RunFolderError, match=r"^run\.folder=/proc/x cannot be written: "):  # also for root
        check(load_config(QUICKSTART, ["run.folder=/proc/x"]), ranks=1)
    check(load_config(QUICKSTART, [f"run.folder={tmp_path / 'new' / 'below' / 'run'}"]), ranks=1)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
