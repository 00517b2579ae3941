"""Who may use a run folder: one process at a time, and only the run whose settings `resolved.yaml` there names.

A folder holds one run. What an earlier start left in it (a warm start, metrics, checkpoints) belongs to the settings in its
`resolved.yaml`: the same settings continue from there, others are refused, and `run.overwrite=true` removes it all first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

import yaml

from megatron_fork.config import RunConfig, differences
from megatron_fork.errors import RunFolderError, command
from megatron_fork.recipe import one_line
from megatron_fork.run.folder import writing_to

RESOLVED = "resolved.yaml"
LOCK = "lock"
# What runs leave behind; other files in the folder, such as a scheduler's log, are not touched.
_LEFT_BY_RUNS = (
    *("checkpoints", "warm_start", "warm_start_state", "model", "engine_weights", "traces", "wandb", "wandb_run"),
    *("tensorboard", "alerts.jsonl", "metrics.jsonl", "updates.jsonl", "summary.json", "report.html"),
)
_REMOVED = ".removed-"
# A killed trainer's checkpoint writer may need a moment to end, on this machine or on the one where the job ran before.
_PATIENCE_SECONDS = 60.0
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
Say = Callable[[str], None]


def claim(path: Path, config: RunConfig, *, may_change: tuple[str, ...], say: Say) -> TextIO:
    """Reserve `path` for this process and this run; the lock lasts as long as the returned file is open.

    Args:
        path: created if it does not exist.
        config: settings of the run, compared with those in the folder.
        may_change: prefixes of the dotted names that a resumed run may change.
        say: prints what is waited for or removed.

    Raises:
        RunFolderError: another process uses it, or it holds another run.

    """
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"run.folder={path} is a file", hint="name a folder; it is created if it does not exist")
    with writing_to(path):
        path.mkdir(parents=True, exist_ok=True)
    lock = _locked(path, say)
    try:
        if config.run.overwrite and not _is_started_again():
            _remove_run(path, say)
        _check_same_run(path, config, may_change)
    except BaseException:
        lock.close()
        raise
    return lock


def check_claim(path: Path, config: RunConfig, *, may_change: tuple[str, ...]) -> None:
    """Raise the `RunFolderError` that `claim` would raise now; nothing is created, changed or waited for."""
    if not path.is_dir():
        return
    with writing_to(path / LOCK), suppress(FileNotFoundError), (path / LOCK).open(encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise _in_use(path, lock.read().strip()) from error
    if not config.run.overwrite or _is_started_again():
        _check_same_run(path, config, may_change)


def new_folder(wanted: Path) -> Path:
    """Create `wanted`, or `wanted.2` and so on if another run of this second has taken that name."""
    with writing_to(wanted):
        wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            path = wanted if number == 1 else wanted.with_name(f"{wanted.name}.{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    raise RunFolderError(f"{wanted} and 998 more exist", hint="name a run.folder")


def _locked(path: Path, say: Say) -> TextIO:
    with writing_to(path / LOCK):
        lock = (path / LOCK).open("a+", encoding="utf-8")
    deadline, told = time.monotonic() + _PATIENCE_SECONDS, False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno in _NO_LOCKS:
                say(f"run.folder={path} is on a file system without locks: make sure that no second run uses it")
                break
            lock.seek(0)
            holder = lock.read().strip()
            if time.monotonic() > deadline or _is_alive(holder):
                lock.close()
                raise _in_use(path, holder) from error
        if not told:
            say(f"run.folder={path}: waiting for {holder or 'an earlier run'} to finish writing")
            told = True
        time.sleep(0.2)
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
    lock.flush()
    return lock


def _in_use(path: Path, holder: str) -> RunFolderError:
    return RunFolderError(
        f"run.folder={path} is in use by {holder or 'another process'}",
        hint="wait until it has ended, or choose another run.folder",
    )


def _is_alive(holder: str) -> bool:
    """Whether the process that a lock names is known to be alive; False for one on another machine."""
    match holder.split():
        case ["process", number, "on", host, *_] if number.isdigit() and host == socket.gethostname():
            return Path("/proc", number).exists() if Path("/proc").is_dir() else True
    return False


def _is_started_again() -> bool:
    """Whether a scheduler or launcher has started the same command again: the run then continues and is not overwritten."""
    return any(
        os.environ.get(name, "0") not in ("", "0") for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
    )


def _remove_run(path: Path, say: Say) -> None:
    """Remove `resolved.yaml` first: if the removal is killed, the rest is refused and not taken for a run."""
    held = _held(path, (RESOLVED, *_LEFT_BY_RUNS))
    if held:
        say(f"run.overwrite=true: removing {', '.join(held)} from {path}")
    with writing_to(path):
        for name in held:
            (path / name).rename(path / f"{_REMOVED}{name}")
        for leaving in path.glob(f"{_REMOVED}*"):
            if leaving.is_dir() and not leaving.is_symlink():
                shutil.rmtree(leaving)
            else:
                leaving.unlink()


def _held(path: Path, names: tuple[str, ...]) -> list[str]:
    """Those of the names that exist there as a file or folder."""
    return [name for name in names if (path / name).is_file() or (path / name).is_dir()]


def _check_same_run(path: Path, config: RunConfig, may_change: tuple[str, ...]) -> None:
    resolved = path / RESOLVED
    out = "choose another run.folder, or start over with run.overwrite=true"
    if not resolved.exists():
        held = _held(path, _LEFT_BY_RUNS)
        if held:
            raise RunFolderError(
                f"run.folder={path} holds {', '.join(held)} but no {RESOLVED}: its settings are not known", hint=out
            )
        return
    try:
        changed = [
            name
            for name in differences(resolved.read_text(encoding="utf-8"), config)
            if not name.startswith(may_change)
        ]
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunFolderError(f"{resolved} cannot be read: {one_line(error)}", hint=out) from error
    if changed:
        raise RunFolderError(
            f"run.folder={path} holds a run with other settings: {', '.join(changed)}",
            hint=f"continue that run with {command('megatron-fork', 'train', resolved)}, {out}",
        )
