"""`plan --from`: a file of another trainer beside a recipe, and the recipe written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from megatron_fork.errors import ConfigError, MegatronForkError, shown, way_out
from megatron_fork.files import replace_file
from megatron_fork.planning import PEERS, TranslatedRow, Translation, translate

_WIDEST, _LONGEST = 64, 200


def show_translation(peer: str, file: Path, *, write: Path | None = None, as_json: bool = False) -> None:
    """Print every value of a file of `peer` beside ours; with `write`, write the recipe, which `load_config` accepts.

    Raises `ConfigError` for a file that cannot be understood, a recipe that is there already, or one that would be refused.
    """
    if write is not None and write.exists():
        raise ConfigError(f"{write} is there already", hint="name a new file; nothing was written")
    if write is not None and not os.access(write.parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"--write={write} cannot be written: {write.parent} is no folder, or this user may not write in it",
            hint="make the folder first, or name a file elsewhere; nothing was written",
        )
    found = translate(peer, file)
    _check_is_of(found)
    if write is not None and (refusal := found.refusal):
        raise ConfigError(f"{refusal.message}; nothing was written", hint=refusal.hint)
    if write is not None:
        try:
            replace_file(write, found.recipe())
        except OSError as error:
            raise ConfigError(
                f"--write={write} cannot be written: {error.strerror or error}", hint=way_out(error, elsewhere="file")
            ) from error
    typer.echo(json.dumps(_record(found)) if as_json else "\n".join(_lines(found)))
    if write is not None and not as_json:
        typer.echo(f"\nrecipe {write}; check it with: megatron-fork doctor {write}")


def _check_is_of(found: Translation) -> None:
    """Raise `ConfigError` where the table knows none of the file's settings and another trainer's does."""
    if any(row.kind == "mapped" for row in found.rows):
        return
    known = {}
    for peer in PEERS:
        with suppress(MegatronForkError):  # a sort of file that the other does not have
            known[peer] = sum(row.kind == "mapped" for row in translate(peer, found.file).rows)
    nearest = max(known, key=lambda peer: known[peer])
    if known[nearest]:
        raise ConfigError(
            f"{found.file} has no setting of {PEERS[found.peer].title}, and {known[nearest]} of {PEERS[nearest].title}",
            hint=f"give --from={nearest}",
        )


def _lines(found: Translation) -> Iterator[str]:
    title = PEERS[found.peer].title
    yield f"{found.file}, a file of {title}, beside a recipe"
    for kind, heading in (
        ("mapped", f"{title} -> here"),
        ("default", f"{title}'s defaults, which the file does not write -> here"),
        ("own", "set here, so that the run is like one there"),
    ):
        rows = [row for row in found.rows if row.kind == kind]
        if rows:
            yield f"\n{heading}"
            yield from _beside(rows)
    for kind, heading in (("missing", "WITHOUT A COUNTERPART"), ("unused", "nothing is lost without")):
        reasons: dict[str, list[str]] = {}
        for row in found.rows:
            if row.kind == kind:
                reasons.setdefault(row.note, []).append(_theirs(row))
        if reasons:
            yield f"\n{heading}"
        for reason, names in reasons.items():
            yield f"  {reason}:"
            yield from (f"    {name}" for name in names)
    yield from (f"\nnot read: {each}" for each in found.remarks)
    if "model.path" not in found.fields:
        yield "\nno model is named: give model.path=FOLDER with the recipe"
    if refusal := found.refusal:
        yield f"\nas a recipe it would be refused: {refusal.message}\n  {refusal.hint}"


def _beside(rows: list[TranslatedRow]) -> Iterator[str]:
    width = min(_WIDEST, max(len(_theirs(row)) for row in rows))
    for row in rows:
        ours = ", ".join(f"{name} = {_value(value)}" for name, value in row.ours.items()) or "(as above)"
        yield f"  {_theirs(row):{width}}  {ours}".rstrip()
        if row.note:
            yield f"  {'':{width}}    {'MIND: ' if row.warns else ''}{row.note}"


def _theirs(row: TranslatedRow) -> str:
    return f"{row.theirs} = {_value(row.value)}" if row.theirs else ""


def _value(value: Any) -> str:
    found = _plain(value)
    text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    return text if text.isprintable() and len(text) <= _LONGEST else shown(text)


def _record(found: Translation) -> dict[str, Any]:
    refusal = found.refusal
    return {
        "peer": found.peer,
        "file": str(found.file),
        "rows": [
            {
                "theirs": row.theirs,
                "value": _plain(row.value),
                "kind": row.kind,
                "ours": {name: _plain(value) for name, value in row.ours.items()},
                "note": row.note,
                "warning": row.warns,
            }
            for row in found.rows
        ],
        "not_read": list(found.remarks),
        "refusal": refusal.message if refusal else None,
    }


def _plain(value: Any) -> Any:
    """What JSON can hold: text for whatever it cannot, infinity among it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)
