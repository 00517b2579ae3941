"""The folder of a run's checkpoints: each is complete, or it does not count.

    checkpoints/
      LATEST              the name of the checkpoint that a run resumes from, replaced in one step
      step-000050/        tensors, and last of all manifest.json: sizes and checksums of every file, and the run's progress
      step-000075.partial/  one that is being written, or that a killed run left behind

A checkpoint appears by a rename, after its manifest was flushed; `LATEST` follows. What stops the machine in between leaves the
previous one. A folder that is not what its manifest says is never loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_fork.distributed import collectives
from megatron_fork.errors import CheckpointError

MANIFEST = "manifest.json"
_FORMAT = 2
_NAME = re.compile(r"step-(\d{6,})(?:\.(\d+))?")
Descriptions = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint, what the run wrote down beside its tensors, and the newer ones that could not be used."""

    folder: Path
    progress: dict[str, Any]
    refused: tuple[str, ...] = field(default=())


def latest(root: Path, *, run: str = "", group: collectives.Group = None) -> Saved | None:
    """The checkpoint that `LATEST` names or, where that one is damaged, the newest complete one before it.

    Where `LATEST` is missing or names none, the newest complete one of all. Every rank of `group` must call it: each checks its
    share of the files. None where nothing was ever saved.

    Args:
        root: the folder of the checkpoints.
        run: identity of the run; a checkpoint of another is refused. Empty accepts any.
        group: ranks that share the work.

    Raises:
        CheckpointError: there are checkpoints, but none is complete.

    """
    pointer = root / "LATEST"
    complete = [folder.name for folder in reversed(complete_folders(root))]
    if not (pointer.is_file() or complete):
        return None
    named = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    if _NAME.fullmatch(named):
        passed_over: list[str] = []
        candidates = [named, *(name for name in complete if _order(name) < _order(named))]
    else:
        passed_over = [f"{pointer}, which is missing or names no checkpoint: {named[:40]!r}"]
        candidates = complete
    refused: list[str] = []
    for name in candidates:
        try:
            return Saved(root / name, verified(root / name, run=run, group=group), (*passed_over, *refused))
        except CheckpointError as error:
            refused.append(error.message)
    raise CheckpointError(
        (refused or passed_over)[0],
        hint=f"no checkpoint in {root} is complete; remove {root} to start anew, or choose another run.folder",
    )


def verified(folder: Path, *, run: str = "", group: collectives.Group = None) -> dict[str, Any]:
    """The progress of a checkpoint whose files are what its manifest says; raises `CheckpointError` otherwise."""
    files, progress = _read_manifest(folder, run)
    names = sorted(files)[collectives.rank(group) :: collectives.size(group)]
    wrong = next((name for name in names if not _is_as_described(folder / name, files[name])), None)
    wrong = next((name for name in collectives.gather_objects(wrong, group) if name is not None), None)
    if wrong is not None:
        raise CheckpointError(f"checkpoint file {folder / wrong} is missing or differs from its manifest")
    return progress


def _read_manifest(folder: Path, run: str) -> tuple[Descriptions, dict[str, Any]]:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"checkpoint {folder} has no {MANIFEST}: it was not completed")
    try:
        record = json.loads(manifest.read_text())
        found = {name: record[name] for name in ("format", "name", "run", "files", "progress")}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{manifest} cannot be read: {error!r}") from error
    if found["format"] != _FORMAT:
        raise CheckpointError(f"{manifest} has format={found['format']}, this version reads format={_FORMAT}")
    if _order(found["name"]) != _order(folder.name):
        raise CheckpointError(f"{manifest} is of {found['name']}, not of {folder.name}")
    if run and found["run"] != run:
        raise CheckpointError(f"{manifest} belongs to another run: run={found['run']}, this one is {run}")
    return found["files"], found["progress"]


def _is_as_described(path: Path, description: Mapping[str, Any]) -> bool:
    # The size first: a truncated file need not be read.
    return path.is_file() and path.stat().st_size == description.get("bytes") and describe(path) == description


def describe(path: Path) -> dict[str, Any]:
    """Size and checksum of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def flush_and_describe(folder: Path, names: Iterable[str]) -> Descriptions:
    """Bring the named files to the disk, and describe them."""
    described = {}
    for name in names:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        described[name] = describe(folder / name)
    return described


def file_names(folder: Path) -> list[str]:
    """Every file below `folder`, by its path there, in order."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def begin(root: Path, step: int, parts: Iterable[str]) -> Path:
    """A new folder to write a checkpoint of `step` into, with a folder for each part; leavings of killed runs go."""
    for leaving in root.glob("step-*.partial"):
        shutil.rmtree(leaving, ignore_errors=True)
    aside = root / f"step-{step:06d}.partial"
    aside.mkdir(parents=True)
    for part in parts:
        (aside / part).mkdir()
    return aside


def publish(aside: Path, files: Descriptions, *, run: str, progress: Mapping[str, Any]) -> Path:
    """Write the manifest, rename the folder, point `LATEST` to it; returns the complete checkpoint."""
    root, complete = aside.parent, _free_name(aside.with_suffix(""))
    record = {"format": _FORMAT, "name": complete.name, "run": run, "progress": progress, "files": files}
    _write_flushed(aside / MANIFEST, json.dumps(record, indent=1))
    for folder in [path for path in aside.rglob("*") if path.is_dir()] + [aside]:
        flush_folder(folder)
    aside.rename(complete)
    flush_folder(root)
    pointer = root / "LATEST.partial"
    _write_flushed(pointer, complete.name + "\n")
    pointer.replace(root / "LATEST")
    flush_folder(root)
    return complete


def keep_only(root: Path, *, newest: int, every: int = 0) -> None:
    """Remove checkpoints except the `newest` ones, those of every `every`-th step, and the one that `LATEST` names."""
    folders = complete_folders(root)
    named = (root / "LATEST").read_text().strip()
    for folder in folders[:-newest]:
        step = _order(folder.name)[0]
        if folder.name != named and not (every and step % every == 0):
            (folder / MANIFEST).unlink(missing_ok=True)  # first, so that a half-removed one does not count
            shutil.rmtree(folder, ignore_errors=True)


def complete_folders(root: Path) -> list[Path]:
    """Folders with a manifest, oldest first."""
    named = [path for path in root.glob("step-*") if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file()]
    return sorted(named, key=lambda path: _order(path.name))


def _order(name: str) -> tuple[int, int]:
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2] or 1)) if match else (-1, 0)


def _free_name(wanted: Path) -> Path:
    """`wanted`, or where a run was set back and comes by again, `wanted.2` and so on: nothing complete is overwritten."""
    names = [wanted, *(wanted.with_name(f"{wanted.name}.{count}") for count in range(2, 1000))]
    return next(name for name in names if not name.exists())


def _write_flushed(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
