"""The subsets ("configs") and splits of a data-set folder, as its README.md declares them, else by the names of folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import yaml

from megatron_fork.errors import DataError

Splits = dict[str, list[Path]]
_T = TypeVar("_T")

FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
SPLIT = re.compile(r"(?:^|[-_./])(train|test|validation|valid|val|dev)(?=[-_./]|$)", re.IGNORECASE)
ALL = "*"


def choose(
    source: Path, files: list[Path], split: str | None, subset: str | None, *, is_rows: Callable[[Path], bool]
) -> list[Path]:
    """The data files of one subset and one split; raises `DataError` if it is not clear which.

    `is_rows`: whether a file that the README names can hold rows.
    """
    subsets = _declared(source, files, is_rows) or _by_folder(source, files)
    if subset == ALL:
        merged: Splits = {}
        for splits in subsets.values():
            for name, paths in splits.items():
                merged[name] = list(dict.fromkeys([*merged.get(name, []), *paths]))
        return one_of(source, merged, split, "split")
    hint = "; '*' takes all of them together" if subset is None else ""
    return one_of(source, one_of(source, subsets, subset, "subset", hint), split, "split")


def one_of(source: Path, there: dict[str, _T], name: str | None, what: str, hint: str = "") -> _T:
    """The entry called `name`, or the only one."""
    if name is None and len(there) == 1:
        return next(iter(there.values()))
    if name is not None and name in there:
        return there[name]
    problem = f"several {what}s" if name is None else f"no {what} {name!r}"
    names = ", ".join(sorted(each or "(none)" for each in there))
    raise DataError(
        f"data.source={source} has {problem}; there are: {names}", hint=f"set data.{what} to one of them{hint}"
    )


def _by_folder(source: Path, files: Iterable[Path]) -> dict[str, Splits]:
    """Folders are subsets, except `data` and those named for a split; files outside of them form one without a name."""
    subsets: dict[str, Splits] = {}
    for path in files:
        folders = path.relative_to(source).parent.parts
        named = [part for part in folders if part.lower() != "data" and not SPLIT.fullmatch(part)]
        splits = subsets.setdefault("/".join(named), {})
        splits.setdefault(_split_of(source, path), []).append(path)
    return subsets


def _split_of(source: Path, path: Path) -> str:
    name = SPLIT.search(path.relative_to(source).as_posix())
    return name[1].lower() if name else ""


def _declared(source: Path, files: list[Path], is_rows: Callable[[Path], bool]) -> dict[str, Splits]:
    """Subsets that the README's front matter declares, as the Hub reads it."""
    readme = source / "README.md"
    if not readme.is_file():
        return {}
    matter = FRONT_MATTER.search(readme.read_text(encoding="utf-8", errors="replace"))
    try:
        fields = yaml.safe_load(matter[1]) if matter else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(
            f"{readme} has no readable YAML: {str(error).splitlines()[0]}", hint="correct it, or name a data file"
        ) from error
    configs = fields.get("configs") if isinstance(fields, dict) else None
    if not isinstance(configs, list):
        return {}
    try:
        subsets = {str(config["config_name"]): _splits_of(source, config, files, is_rows) for config in configs}
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{readme} has configs that are not readable: {type(error).__name__}: {error}",
            hint="each has config_name and data_files; or name a data file",
        ) from error
    return {name: splits for name, splits in subsets.items() if splits}  # the others were not downloaded


def _splits_of(source: Path, config: dict[str, Any], files: list[Path], is_rows: Callable[[Path], bool]) -> Splits:
    """Files of one declared subset by split, from `data_files`, which has several forms, or from `data_dir`."""
    splits: Splits = {}
    folder = source / _inside(str(config.get("data_dir") or "."))
    declared = config.get("data_files")
    if declared is None:
        for path in files:
            if path.is_relative_to(folder):
                splits.setdefault(_split_of(source, path), []).append(path)
        return splits
    entries = list(declared.items()) if isinstance(declared, dict) else _entries(declared)
    for split, patterns in entries:
        listed = [patterns] if isinstance(patterns, str) else list(patterns)
        found = {each: sorted(path for path in folder.glob(_inside(each)) if is_rows(path)) for each in listed}
        missing = [each for each, paths in found.items() if not paths]
        if missing and len(missing) < len(listed):
            raise DataError(
                f"README.md names the data files {missing[0]}, but {folder} has none of them",
                hint="download the data set again, or name a data file",
            )
        for path in (path for paths in found.values() for path in paths):
            splits.setdefault(_split_of(source, path) if split is None else str(split), []).append(path)
    return splits


def _entries(declared: Any) -> list[tuple[str | None, Any]]:
    """(split, pattern or patterns) from a list of both, or of patterns alone."""
    listed = declared if isinstance(declared, list) else [declared]
    return [(each["split"], each["path"]) if isinstance(each, dict) else (None, each) for each in listed]


def _inside(pattern: str) -> str:
    """`pattern`; raises `DataError` if it leads out of the folder."""
    path = PurePosixPath(pattern)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"README.md names the data files {pattern}, outside of its folder", hint="name a data file")
    return pattern
