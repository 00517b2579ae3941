"""A file of another trainer beside a recipe: every value once, with the field that it becomes or why there is none."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from megatron_fork.config import load_config
from megatron_fork.errors import MASK, ConfigError, MegatronForkError, shown
from megatron_fork.planning.peers.nemo_rl import NEMO_RL
from megatron_fork.planning.peers.reading import written
from megatron_fork.planning.peers.slime import SLIME
from megatron_fork.planning.peers.table import Converted, Counterpart, PeerTable
from megatron_fork.planning.peers.trl import TRL
from megatron_fork.planning.peers.values import Given, Unknown, Unresolved
from megatron_fork.planning.peers.verl import VERL
from megatron_fork.recipe import write_yaml

PEERS: Mapping[str, PeerTable] = {"verl": VERL, "slime": SLIME, "nemo-rl": NEMO_RL, "trl": TRL}
_SECRET = re.compile(r"api_?key|wandb[-_]key|password|secret|(access|hub|hf|auth)_?token", re.IGNORECASE)
Kind = Literal["mapped", "unused", "missing", "default", "own"]


@dataclass(frozen=True)
class TranslatedRow:
    """One line of the table."""

    theirs: str
    value: Any
    kind: Kind
    """mapped: it becomes `ours`. unused: nothing is lost without it. missing: no counterpart. default: theirs, not written in
    the file. own: a field of a recipe alone."""
    ours: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    warns: bool = False


@dataclass(frozen=True)
class Translation:
    """What a file of another trainer says, in a recipe's words."""

    peer: str
    file: Path
    rows: tuple[TranslatedRow, ...]
    remarks: tuple[str, ...]
    """What was not read of the file."""

    @property
    def fields(self) -> dict[str, Any]:
        """The recipe's fields by dotted name."""
        return {name: value for row in self.rows for name, value in row.ours.items()}

    @property
    def warnings(self) -> list[str]:
        """Values without a counterpart, and those that mean something else here."""
        return [
            *self.remarks,
            *(f"{row.theirs}={_text(row.value)}: {row.note}" for row in self.rows if row.warns),
        ]

    @property
    def refusal(self) -> MegatronForkError | None:
        """Why `load_config` would refuse the recipe; a model that is not named yet is no reason."""
        try:
            self.check(("model.path=MODEL",) if "model.path" not in self.fields else ())
        except MegatronForkError as error:
            return error
        return None

    def recipe(self) -> str:
        """The recipe as YAML, headed by what it does not hold."""
        tree: dict[str, Any] = {}
        for name, value in self.fields.items():
            *rooms, last = name.split(".")
            inside = tree
            for room in rooms:
                inside = inside.setdefault(room, {})
            inside[last] = value
        title = PEERS[self.peer].title
        lines = [f"From {self.file.name}, a file of {title}.", *(f"{title}: {each}" for each in self.warnings)]
        return "".join(f"# {line}\n" for line in lines if line.isprintable()) + write_yaml(tree)

    def check(self, overrides: tuple[str, ...] = ()) -> None:
        """Raises the `ConfigError` of a recipe that cannot be loaded."""
        with tempfile.TemporaryDirectory() as folder:
            recipe = Path(folder, f"{self.file.stem}.yaml")
            recipe.write_text(self.recipe(), encoding="utf-8")
            try:
                load_config(recipe, overrides)
            except ConfigError as error:
                message = error.message.replace(str(recipe), f"of {self.file}")
                raise ConfigError(message, hint=error.hint) from error


def translate(peer: str, file: Path) -> Translation:
    """Read a file of another trainer; raises `ConfigError` for an unknown trainer or a file that cannot be understood."""
    if peer not in PEERS:
        raise ConfigError(f"{shown(peer)} is not a trainer that is known", hint=f"one of {', '.join(PEERS)}")
    table = PEERS[peer]
    values, remarks = written(table, file)
    given = Given(values, table.defaults)
    rows: list[TranslatedRow] = []
    fields: dict[str, Any] = {}
    for name, value in _in_order(table, values):
        row = _without_secrets(_row(table, given, name, value, fields))
        fields |= row.ours
        rows.append(row)
    for entry in table.counterparts:
        if entry.default is not None and not given.is_written(entry.theirs):
            rows += (added := _default(entry, given, fields))
            fields |= {name: each for row in added for name, each in row.ours.items()}
    for own in table.own:
        if own.ours not in fields:
            fields[own.ours] = own.value
            rows.append(TranslatedRow("", None, "own", {own.ours: own.value}, own.note))
    return Translation(peer, file, tuple(rows), tuple(remarks))


def _in_order(table: PeerTable, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The values in the order of the table, whose earlier entries go first where two set one field."""
    place = {entry.theirs: index for index, entry in enumerate(table.counterparts)}
    return sorted(values.items(), key=lambda pair: place.get(pair[0], len(place)))


def _row(table: PeerTable, given: Given, name: str, value: Any, fields: Mapping[str, Any]) -> TranslatedRow:
    for entry in table.counterparts:
        if entry.theirs == name:
            return _counterpart(entry, given, value, fields)
    if value is None:
        return TranslatedRow(name, value, "unused", {}, "not set")
    for each in table.missing:
        if each.covers(name):
            nothing_lost = not each.lost or value in each.off
            return TranslatedRow(name, value, "unused" if nothing_lost else "missing", {}, each.why, not nothing_lost)
    return TranslatedRow(name, value, "missing", {}, "not known to this table", True)


def _without_secrets(row: TranslatedRow) -> TranslatedRow:
    """The row, whose value is masked where it or its name looks like a login's."""
    hidden = row.value is not None and not row.ours and _SECRET.search(f"{row.theirs} {row.value}")
    return replace(row, value=MASK) if hidden else row


def _counterpart(entry: Counterpart, given: Given, value: Any, fields: Mapping[str, Any]) -> TranslatedRow:
    if isinstance(value, Unresolved):
        return TranslatedRow(entry.theirs, value, "missing", {}, "only a run of that file knows its value", True)
    if value is None:
        return TranslatedRow(entry.theirs, value, "unused", {}, "not set")
    try:
        found: Converted = entry.converted(given)
    except Unknown as unknown:
        found = f"it cannot be converted without {unknown.name}"
    if isinstance(found, str):
        return TranslatedRow(entry.theirs, value, "missing", {}, found, True)
    other = [name for name, each in found.items() if name in fields and fields[name] != each]
    if other:
        why = f"left out: {other[0]}={_text(fields[other[0]])} by another of its values"
        return TranslatedRow(entry.theirs, value, "missing", {}, why, True)
    return TranslatedRow(
        entry.theirs, value, "mapped" if found else "unused", found, entry.note, bool(found) and entry.caution
    )


def _default(entry: Counterpart, given: Given, fields: Mapping[str, Any]) -> list[TranslatedRow]:
    """Their default, for the fields that nothing has set."""
    try:
        found = entry.converted(given)
    except Unknown:
        return []
    new = {} if isinstance(found, str) else {name: value for name, value in found.items() if name not in fields}
    if isinstance(found, str):
        return [TranslatedRow(entry.theirs, entry.default, "default", {}, found, True)]
    if not new and not entry.assumed:
        return []
    return [TranslatedRow(entry.theirs, entry.default, "default", new, entry.note, entry.assumed)]


def _text(value: Any) -> str:
    return value.text if isinstance(value, Unresolved) else shown(value)
