"""Whatever ends a run while it saves, what it resumes from is a complete checkpoint, and the newest whose save had returned.

Each process saves over and over and says so when a save is complete; it is killed at a random moment, or at the very moments
that matter. The larger count of kills is in benchmarks/kills.py.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
from support import saver

from megatron_fork.checkpoint import latest
from megatron_fork.errors import CheckpointError


class Saver:
    """`saver.main` as a fork of a process that has imported what it needs, in a session of its own."""

    def __init__(self, folder: Path, last: int, moment: str | None = None) -> None:
        receiving, sending = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("forkserver")
        self._process = context.Process(target=_save, args=(folder, last, moment, sending))
        self._process.start()
        sending.close()
        self._lines = os.fdopen(os.dup(receiving.fileno()))
        receiving.close()

    def line(self) -> str:
        return self._lines.readline()

    def wait(self, limit: float = 180.0) -> int | None:
        self._process.join(limit)
        return self._process.exitcode

    def kill(self) -> list[int]:
        """Kill the process with its writers, which hold its output open; the steps whose saves it had reported."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()
        with self._lines:
            return [int(line.split()[1]) for line in self._lines if line.startswith("saved")]


def _save(folder: Path, last: int, moment: str | None, output: Connection) -> None:
    os.setsid()
    os.dup2(output.fileno(), 1)
    output.close()
    torch.set_num_threads(1)
    saver.main(folder, last, moment)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    reported = 0
    for saves in (0, 2, 1):
        process = Saver(tmp_path, 50)
        assert process.line().startswith("resumed")
        for _ in range(saves):
            reported = max(reported, int(process.line().split()[1]))
        time.sleep(random.uniform(0.0, 1.0))
        reported = max([reported, *process.kill()])
        found = latest(tmp_path)
        assert (found.progress["step"] if found else 0) >= reported
    assert reported > 0


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    process = Saver(folder, 2)
    assert process.wait() == 0
    assert process.kill() == [1, 2]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["manifest", "rename", "pointer", "removal"])
def test_killed_between(moment: str, two_saved: Path, tmp_path: Path) -> None:
    shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
    process = Saver(tmp_path, 4, moment)
    assert process.wait() == -signal.SIGKILL
    assert process.kill() == []
    found = latest(tmp_path)
    assert found is not None and found.progress["step"] == (3 if moment == "removal" else 2)
    if moment == "pointer":
        process = Saver(tmp_path, 4)
        assert process.wait() == 0
        assert process.kill() == [3, 4]
        found = latest(tmp_path)
        assert found is not None and found.progress["step"] == 4
        assert not list(tmp_path.glob("*.partial"))


def complete_pair(folder: Path) -> None:
    """Two checkpoints, made by hand: what the tests below damage is the manifest's business alone."""
    from megatron_fork.checkpoint import folder as folders

    for step in (1, 2):
        aside = folders.begin(folder, step, ["policy"])
        (aside / "policy" / "__0_0.distcp").write_bytes(bytes(range(256)) * 40)
        (aside / "policy" / "common.pt").write_bytes(b"common")
        files = folders.flush_and_describe(aside, folders.file_names(aside))
        folders.publish(aside, files, run="this", progress={"step": step})


def flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[777] ^= 4
    file.write_bytes(content)


def other_run(folder: Path) -> None:
    from megatron_fork.checkpoint import manifest

    files, progress = manifest.read(folder / "step-000002", "this")
    text = manifest.written(name="step-000002", run="other", progress=progress, files=files)
    (folder / "step-000002" / "manifest.json").write_text(text)


def older_manifest(folder: Path) -> None:
    shutil.copyfile(folder / "step-000001" / "manifest.json", folder / "step-000002" / "manifest.json")


DAMAGES = {
    "a shard is truncated": (
        lambda folder: os.truncate(folder / "step-000002/policy/__0_0.distcp", 99),
        "differs from its manifest",
    ),
    "a bit is flipped": (
        lambda folder: flip_bit(folder / "step-000002/policy/__0_0.distcp"),
        "differs from its manifest",
    ),
    "a file is missing": (lambda folder: (folder / "step-000002/policy/common.pt").unlink(), "is missing or differs"),
    "the manifest is missing": (lambda folder: (folder / "step-000002/manifest.json").unlink(), "has no manifest.json"),
    "the manifest is cut off": (lambda folder: os.truncate(folder / "step-000002/manifest.json", 50), "cannot be read"),
    "the manifest is of another run": (other_run, "belongs to another run"),
    "the manifest is of another step": (older_manifest, "belongs to step-000001, not to step-000002"),
    "the folder is gone": (lambda folder: shutil.rmtree(folder / "step-000002"), "has no manifest.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_refused_and_the_one_before_is_used(damage: str, tmp_path: Path) -> None:
    complete_pair(tmp_path)
    found = latest(tmp_path, run="this")
    assert found is not None and found.progress == {"step": 2} and found.refused == ()
    apply, named = DAMAGES[damage]
    apply(tmp_path)
    found = latest(tmp_path, run="this")
    assert found is not None and found.progress == {"step": 1}
    assert len(found.refused) == 1 and named in found.refused[0]
    flip_bit(tmp_path / "step-000001" / "policy" / "__0_0.distcp")
    with pytest.raises(CheckpointError, match=named) as caught:
        latest(tmp_path, run="this")
    assert "no checkpoint" in caught.value.hint


@pytest.mark.parametrize("pointer", [None, "", "\n", "step-1", "../elsewhere", "\x00\xff", "step-000002 and more"])
def test_without_a_pointer_the_newest_complete_one_is_taken_and_said(pointer: str | None, tmp_path: Path) -> None:
    complete_pair(tmp_path)
    if pointer is None:
        (tmp_path / "LATEST").unlink()
    else:
        (tmp_path / "LATEST").write_text(pointer)
    found = latest(tmp_path, run="this")
    assert found is not None and found.progress == {"step": 2}
    assert len(found.refused) == 1 and "LATEST, which is missing or does not name a checkpoint" in found.refused[0]
    with pytest.raises(CheckpointError, match="belongs to another run"):
        latest(tmp_path, run="another")


def test_an_older_format_is_refused(tmp_path: Path) -> None:
    complete_pair(tmp_path)
    for step in (1, 2):
        manifest = tmp_path / f"step-00000{step}" / "manifest.json"
        record = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**record, "format": 1}))
    with pytest.raises(CheckpointError, match="format=1, this version reads format=3"):
        latest(tmp_path)


def test_a_run_that_was_set_back_overwrites_nothing(tmp_path: Path) -> None:
    complete_pair(tmp_path)
    (tmp_path / "LATEST").write_text("step-000001\n")
    found = latest(tmp_path)
    assert found is not None and found.progress == {"step": 1}
    before = (tmp_path / "step-000002" / "manifest.json").read_text()
    from megatron_fork.checkpoint import folder as folders

    aside = folders.begin(tmp_path, 2, [])
    assert folders.publish(aside, {}, run="this", progress={"step": 2, "again": True}).name == "step-000002.2"
    assert (tmp_path / "step-000002" / "manifest.json").read_text() == before
    found = latest(tmp_path)
    assert found is not None and found.progress == {"step": 2, "again": True}


def test_which_ones_stay(tmp_path: Path) -> None:
    from megatron_fork.checkpoint import folder as folders

    for step in range(1, 13):
        folders.publish(folders.begin(tmp_path, step, []), {}, run="", progress={"step": step})
        folders.keep_only(tmp_path, newest=2, every=5)
    assert [folder.name for folder in folders.complete_folders(tmp_path)] == [
        "step-000005",
        "step-000010",
        "step-000011",
        "step-000012",
    ]
