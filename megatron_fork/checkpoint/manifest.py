"""The manifest of a checkpoint: its files, the run's progress, and a checksum of its own fields.

The checksum is taken over the canonical JSON of the other fields, so that no bit that a reader uses can change unnoticed. It
detects accidents, not attacks: anyone who can write the file can write its checksum too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from megatron_fork.errors import CheckpointError, shown

MANIFEST = "manifest.json"
_FORMAT = 3
_FIELDS = ("format", "name", "run", "progress", "files")
_SEAL = "sha256"
_NAME = re.compile(r"step-(\d{6,15})(?:\.(\d{1,3}))?", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
# The size for a run with a hundred thousand files; a larger manifest is not read into memory.
_MOST_BYTES = 64 << 20
Descriptions = dict[str, dict[str, Any]]


def step_of(name: str) -> tuple[int, int]:
    """The step of a checkpoint's folder, and which of that step's checkpoints it is; (-1, 0) for other names."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2] or 1)) if match else (-1, 0)


def is_name(text: str) -> bool:
    """Whether this is the name of a checkpoint's folder."""
    return _NAME.fullmatch(text) is not None


def written(*, name: str, run: str, progress: Mapping[str, Any], files: Descriptions) -> str:
    """The text of a manifest; `name` is the name of the checkpoint's folder."""
    record = {"format": _FORMAT, "name": name, "run": run, "progress": progress, "files": files}
    # As a reader will see it: JSON turns tuples into lists, and keys that are numbers into text.
    record = json.loads(json.dumps(record))
    return json.dumps({**record, _SEAL: _seal(record)}, indent=1)


def read(folder: Path, run: str, formerly: Sequence[str] = ()) -> tuple[Descriptions, dict[str, Any]]:
    """Files and progress of the checkpoint `folder`, which must belong to `run` unless that is empty.

    `formerly`: the run's fingerprints in earlier versions. Raises `CheckpointError`.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"checkpoint {folder} has no {MANIFEST}: it was not completed")
    record = _record(manifest)
    if record["format"] != _FORMAT:
        raise CheckpointError(
            f"{manifest} has format={shown(record['format'])}, this version reads format={_FORMAT}: continue with the "
            "version that wrote it, or start over"
        )
    fields = {name: value for name, value in record.items() if name != _SEAL}
    if record.get(_SEAL) != _seal(fields):
        raise CheckpointError(f"{manifest} is damaged: it does not match its {_SEAL}={shown(record.get(_SEAL))}")
    if not isinstance(record["name"], str) or step_of(record["name"]) != step_of(folder.name):
        raise CheckpointError(f"{manifest} belongs to {shown(record['name'])}, not to {folder.name}")
    if run and record["run"] not in (run, *formerly):
        raise CheckpointError(f"{manifest} belongs to another run: run={shown(record['run'])}, this one is {run}")
    _check_progress(manifest, record["progress"])
    _check_files(manifest, record["files"])
    return record["files"], record["progress"]


def _record(manifest: Path) -> dict[str, Any]:
    try:
        if manifest.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has {manifest.stat().st_size:,} bytes")
        record = json.loads(manifest.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{manifest} cannot be read: {error!r}") from error
    if not isinstance(record, dict):
        raise CheckpointError(f"{manifest} cannot be read: it holds {shown(record)}, not fields")
    for name in _FIELDS:
        if name not in record:
            raise CheckpointError(f"{manifest} cannot be read: it has no {name}")
    return record


def _check_progress(manifest: Path, progress: Any) -> None:
    step = progress.get("step") if isinstance(progress, dict) else progress
    if type(step) is not int or step != step_of(manifest.parent.name)[0]:
        raise CheckpointError(
            f"{manifest} has progress.step={shown(step)}, which is not the step of {manifest.parent.name}"
        )


def _check_files(manifest: Path, files: Any) -> None:
    if not isinstance(files, dict):
        raise CheckpointError(f"{manifest} has files={shown(files)}, which is not a list of files")
    for name, description in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
            raise CheckpointError(f"{manifest} names the file {shown(name)}, which is not in its folder")
        size = description.get("bytes") if isinstance(description, dict) else None
        checksum = description.get("sha256") if isinstance(description, dict) else None
        if type(size) is not int or size < 0 or not isinstance(checksum, str) or not _SHA256.fullmatch(checksum):
            raise CheckpointError(f"{manifest} describes the file {name} as {shown(description)}")


def _seal(fields: Mapping[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it names a field twice")
    return found
