"""Finds what kind of Megatron checkpoint a folder is.

Recognised are a folder of Megatron's `torch_dist` format; what Megatron-LM or Megatron-Bridge saved around one; a run folder of
this project, its checkpoints, or one of them. Anything else is an error that says what it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from megatron_fork import checkpoint
from megatron_fork.checkpoint import MANIFEST
from megatron_fork.errors import CheckpointError

MODEL_FILES = "hugging_face"
_TRACKER = "latest_checkpointed_iteration.txt"


@dataclass(frozen=True)
class Located:
    """A `torch_dist` folder, the program that wrote it, and the folder of its config.json if it has one."""

    folder: Path
    writer: str
    model_files: Path | None


def locate(path: Path) -> Located:
    """Find the tensors below `path`; otherwise raises `CheckpointError` that says what the folder is."""
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder", hint="give the folder of a checkpoint")
    for step in (path / "checkpoints", path):
        if (step / "LATEST").is_file() or checkpoint.complete_folders(step):
            return _of_a_run(step)
    if (path / MANIFEST).is_file() and (path / "policy").is_dir():
        return _of_a_step(path)
    if path.name in ("policy", "critic") and (path.parent / MANIFEST).is_file():
        return Located(_checked(path), "megatron-fork", _model_files(path.parent))
    if (path / _TRACKER).is_file():
        path = _of_megatron_lm(path)
    return Located(_checked(path), _writer(path), _model_files(path))


def _of_a_run(checkpoints: Path) -> Located:
    saved = checkpoint.latest(checkpoints)
    assert saved is not None
    return _of_a_step(saved.folder)


def _of_a_step(step: Path) -> Located:
    checkpoint.verified(step)
    return Located(_checked(step / "policy"), "megatron-fork", _model_files(step))


def _of_megatron_lm(root: Path) -> Path:
    named = (root / _TRACKER).read_text().strip()
    folder = root / (named if named == "release" else f"iter_{int(named):07d}" if named.isdigit() else named)
    if not folder.is_dir():
        raise CheckpointError(
            f"{root / _TRACKER} names {named}, but there is no {folder}", hint="the checkpoint was not completed"
        )
    return folder


def _checked(folder: Path) -> Path:
    if (folder / ".metadata").is_file():
        _check_backend(folder)
        return folder
    if any(folder.glob("mp_rank_*")):
        raise CheckpointError(
            f"{folder} has Megatron's legacy format (mp_rank_*), with one file per rank",
            hint="save it with --ckpt-format torch_dist (Megatron-LM: --ckpt-convert-format torch_dist)",
        )
    if any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} holds Hugging Face safetensors, not a Megatron checkpoint",
            hint="convert it with `megatron-fork convert to-megatron`",
        )
    if any(folder.glob("*.distcp")) or (folder / "common.pt").is_file():
        raise CheckpointError(f"{folder} has no .metadata: it was not completed", hint="use an earlier checkpoint")
    raise CheckpointError(
        f"{folder} is not a Megatron checkpoint: it has no .metadata",
        hint="give a torch_dist folder, a Megatron-LM folder with latest_checkpointed_iteration.txt, or a run folder",
    )


def _check_backend(folder: Path) -> None:
    config = folder / "metadata.json"
    if not config.is_file():
        return
    try:
        backend = json.loads(config.read_text()).get("sharded_backend")
    except ValueError as error:
        raise CheckpointError(f"{config} cannot be read: {error}", hint="the checkpoint is damaged") from error
    if backend not in (None, "torch_dist"):
        raise CheckpointError(
            f"{folder} has the format sharded_backend={backend}", hint="save it as torch_dist with Megatron first"
        )


def _writer(folder: Path) -> str:
    if (folder / MODEL_FILES).is_dir() and (folder / MANIFEST).is_file():
        return "megatron-fork convert"
    if (folder / "run_config.yaml").is_file():
        return "Megatron-Bridge"
    return "Megatron"


def _model_files(folder: Path) -> Path | None:
    found = folder / MODEL_FILES
    return found if (found / "config.json").is_file() else None
