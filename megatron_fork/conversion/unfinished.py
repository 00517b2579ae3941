"""The folder `OUT.partial` of a conversion: taken up where an earlier one stopped, and renamed when it is complete."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from megatron_fork import __version__
from megatron_fork.conversion.hugging_face import files_beside
from megatron_fork.conversion.journal import JOURNAL, Journal
from megatron_fork.errors import CheckpointError, Interrupted, MegatronForkError, size, way_out
from megatron_fork.files import flush_folder

# Raised with every change of what a conversion writes: one that was begun before cannot go on.
_FORM = 1
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def subject_of(weights: Iterable[Path], model_files: Path, **options: Any) -> dict[str, Any]:
    """What decides every byte of a conversion: its source, known by sizes and times, its options, and the versions."""
    beside = [model_files / "config.json", *(model_files / file for file in files_beside(model_files))]
    return {
        "form": _FORM,
        "megatron-fork": __version__,
        "torch": version("torch"),
        **options,
        "weights": {file.name: _described(file) for file in weights},
        "other files": {str(file.relative_to(model_files)): _described(file) for file in beside},
    }


def _described(file: Path) -> list[int]:
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def partial_of(out: Path) -> Path:
    """Where the conversion to `out` is until it is complete."""
    return out.with_name(out.name + ".partial")


@contextmanager
def taken_up(out: Path, describe: Callable[[], Mapping[str, Any]], *, restart: bool) -> Iterator[Journal]:
    """`partial_of(out)` with its journal; it becomes `out` at the end.

    What a signal, a disk or a defect ends stays, and the same conversion goes on from there. Any other error is about the
    source, of which nothing could be used: then the folder is removed.

    Args:
        out: must not exist.
        describe: gives `subject_of` the conversion; `CheckpointError` is raised if the folder was begun with another, or if
            it is another at the end.
        restart: whether to remove what an earlier conversion left.

    """
    aside, subject = partial_of(out), describe()
    refuse_existing(out)
    try:
        aside.mkdir(parents=True, exist_ok=True)
        with _locked(aside):
            if restart:
                _clear(aside)
            journal = Journal(aside, subject)
            with _left_behind(journal):
                yield journal
                _require_same_source(subject, describe)
                journal.flush_others()
            aside.rename(out)
            flush_folder(out.parent)
            (out / JOURNAL).unlink()
    except OSError as error:
        kept = f"; {aside} keeps what is written, and the same command goes on from there" if aside.exists() else ""
        raise CheckpointError(
            f"{out} cannot be written: {error.strerror or error}", hint=way_out(error, elsewhere="folder") + kept
        ) from error


def _require_same_source(subject: Mapping[str, Any], describe: Callable[[], Mapping[str, Any]]) -> None:
    try:
        is_same = describe() == subject
    except OSError:
        is_same = False
    if not is_same:
        raise CheckpointError(
            "the source was changed while it was converted", hint="convert it again when nothing else writes it"
        )


def refuse_existing(out: Path) -> None:
    """Raise `CheckpointError` if there is an `out`: a conversion writes nothing over."""
    if out.exists():
        (out / JOURNAL).unlink(missing_ok=True)  # left by a kill between the last two steps of a conversion
        raise CheckpointError(f"{out} exists already", hint="choose another folder, or remove it first")


def require_room(folder: Path, total: int) -> None:
    """Raise `OSError` if the disk has no room for what `folder` lacks of `total` bytes."""
    there = sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free
    if total - there > free:
        raise OSError(errno.ENOSPC, f"{size(total - there)} are to be written, and its disk has {size(free)}")


@contextmanager
def _left_behind(journal: Journal) -> Iterator[None]:
    """What is left of a conversion that ends early."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, MegatronForkError) or isinstance(error, Interrupted):
            with suppress(OSError):
                journal.flush()
        else:
            journal.parts.clear()
        if not journal.parts:
            shutil.rmtree(journal.folder, ignore_errors=True)
        raise


@contextmanager
def _locked(aside: Path) -> Iterator[None]:
    """The folder is this process's alone, where its file system has locks."""
    descriptor = os.open(aside, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise CheckpointError(
            f"another conversion is writing {aside}", hint="wait for it, or choose another OUT"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
    try:
        yield
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
