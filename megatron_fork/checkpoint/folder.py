"""The folder of a run's checkpoints: each is complete, or it does not count.

    checkpoints/
      LATEST              the name of the checkpoint that a run resumes from, replaced in one step
      step-000050/        tensors, and written last manifest.json: size and checksum of every file, and the run's progress
      step-000075.partial/  one that is being written, or that a killed run left behind

A checkpoint appears by a rename after its manifest was flushed; then `LATEST` is replaced. If the machine stops in between, the
previous one stays. A folder that does not match its manifest is never loaded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_fork.checkpoint import manifest
from megatron_fork.checkpoint.manifest import MANIFEST, Descriptions, is_name, step_of
from megatron_fork.distributed import collectives
from megatron_fork.errors import CheckpointError
from megatron_fork.files import flush_folder, replace_file, write_flushed

_POINTER = "LATEST"


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint, the run's progress in its manifest, and the newer checkpoints that could not be used."""

    folder: Path
    progress: dict[str, Any]
    refused: tuple[str, ...] = field(default=())


def latest(root: Path, *, run: str = "", formerly: Sequence[str] = (), group: collectives.Group = None) -> Saved | None:
    """The checkpoint that `LATEST` names or, if that one is damaged, the newest complete one before it.

    If `LATEST` is missing or invalid, the newest complete one of all. None if nothing was ever saved. Every rank of `group`
    must call it: each checks a part of the files.

    Args:
        root: the folder of the checkpoints.
        run: fingerprint of the run; a checkpoint of another run is refused. Empty accepts any.
        formerly: the run's fingerprints in earlier versions.
        group: ranks that share the work.

    Raises:
        CheckpointError: there are checkpoints, but none is complete.

    """
    pointer = root / _POINTER
    complete = [folder.name for folder in reversed(complete_folders(root))]
    if not (pointer.is_file() or complete):
        return None
    named = _named(root)
    if is_name(named):
        passed_over: list[str] = []
        candidates = [named, *(name for name in complete if step_of(name) < step_of(named))]
    else:
        passed_over = [f"{pointer}, which is missing or does not name a checkpoint: {named[:40]!r}"]
        candidates = complete
    refused: list[str] = []
    for name in candidates:
        try:
            progress = verified(root / name, run=run, formerly=formerly, group=group)
            return Saved(root / name, progress, (*passed_over, *refused))
        except CheckpointError as error:
            refused.append(error.message)
    raise CheckpointError(
        (refused or passed_over)[0],
        hint=f"no checkpoint in {root} is complete; remove {root} to start over, or choose another run.folder",
    )


def verified(
    folder: Path, *, run: str = "", formerly: Sequence[str] = (), group: collectives.Group = None
) -> dict[str, Any]:
    """The progress of a checkpoint whose files match its manifest; raises `CheckpointError` otherwise."""
    files, progress = manifest.read(folder, run, formerly)
    names = sorted(files)[collectives.rank(group) :: collectives.size(group)]
    wrong = next((name for name in names if not _is_as_described(folder / name, files[name])), None)
    wrong = next((name for name in collectives.gather_objects(wrong, group) if name is not None), None)
    if wrong is not None:
        raise CheckpointError(f"checkpoint file {folder / wrong} is missing or differs from its manifest")
    return progress


def _is_as_described(path: Path, description: Mapping[str, Any]) -> bool:
    # The size first, so that a truncated file is not read.
    return path.is_file() and path.stat().st_size == description.get("bytes") and describe(path) == description


def describe(path: Path) -> dict[str, Any]:
    """Size and checksum of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def flush_and_describe(folder: Path, names: Iterable[str]) -> Descriptions:
    """Flush the named files to the disk, and return their sizes and checksums."""
    described = {}
    for name in names:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        described[name] = describe(folder / name)
    return described


def file_names(folder: Path) -> list[str]:
    """The paths of all files below `folder`, relative to it and sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def begin(root: Path, step: int, parts: Iterable[str]) -> Path:
    """Create the folder to write a checkpoint of `step` into, with a folder for each part; removes those of killed runs."""
    for leaving in root.glob("step-*.partial"):
        shutil.rmtree(leaving, ignore_errors=True)
    aside = root / f"step-{step:06d}.partial"
    root.mkdir(exist_ok=True)  # not its parents: a run folder that the user has removed must not be created again
    aside.mkdir()
    for part in parts:
        (aside / part).mkdir()
    return aside


def publish(aside: Path, files: Descriptions, *, run: str, progress: Mapping[str, Any]) -> Path:
    """Write the manifest, rename the folder and point `LATEST` to it; returns the complete checkpoint."""
    root, complete = aside.parent, _free_name(aside.with_suffix(""))
    text = manifest.written(name=complete.name, run=run, progress=progress, files=files)
    write_flushed(aside / MANIFEST, text)
    for folder in [path for path in aside.rglob("*") if path.is_dir()] + [aside]:
        flush_folder(folder)
    aside.rename(complete)
    flush_folder(root)
    _point_to(complete)
    return complete


def _point_to(complete: Path) -> None:
    replace_file(complete.parent / _POINTER, complete.name + "\n")
    flush_folder(complete.parent)


def names_nothing(root: Path) -> bool:
    """Whether `LATEST` is missing or does not name a complete checkpoint: after a save, somebody has removed it."""
    named = _named(root)
    return not (is_name(named) and (root / named / MANIFEST).is_file())


def point_to_newest(root: Path) -> Path | None:
    """Point `LATEST` to the newest complete checkpoint that is left and return it; if none is left, remove `LATEST`."""
    complete = complete_folders(root)
    if complete:
        _point_to(complete[-1])
        return complete[-1]
    (root / _POINTER).unlink(missing_ok=True)
    return None


def _named(root: Path) -> str:
    """The content of `LATEST`; empty if there is none."""
    try:
        return (root / _POINTER).read_text(errors="replace").strip()
    except OSError:
        return ""


def keep_only(root: Path, *, newest: int, every: int = 0) -> None:
    """Remove checkpoints except the `newest` ones, those of every `every`-th step, and the one that `LATEST` names."""
    folders = complete_folders(root)
    named = _named(root)
    for folder in folders[:-newest]:
        step = step_of(folder.name)[0]
        if folder.name != named and not (every and step % every == 0):
            (folder / MANIFEST).unlink(missing_ok=True)  # first, so that a half-removed one does not count
            shutil.rmtree(folder, ignore_errors=True)


def complete_folders(root: Path) -> list[Path]:
    """Folders with a manifest, oldest first."""
    named = [path for path in root.glob("step-*") if is_name(path.name) and (path / MANIFEST).is_file()]
    return sorted(named, key=lambda path: step_of(path.name))


def _free_name(wanted: Path) -> Path:
    """`wanted`, or `wanted.2` and so on if a run was set back and repeats the step: complete ones are not overwritten."""
    names = [wanted, *(wanted.with_name(f"{wanted.name}.{count}") for count in range(2, 1000))]
    return next(name for name in names if not name.exists())
