"""Which reader a file needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_fork.errors import ConfigError
from megatron_fork.planning.peers.command_lines import dotted_arguments, option_arguments
from megatron_fork.planning.peers.documents import document, text_of
from megatron_fork.planning.peers.python_calls import keyword_arguments
from megatron_fork.planning.peers.table import PeerTable

_DOCUMENTS, _LONGEST = (".yaml", ".yml", ".json"), 1 << 20


def written(table: PeerTable, file: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings of a file by their names there, and remarks; raises `ConfigError` for a file without any."""
    if len(text_of(file)) > _LONGEST:
        raise ConfigError(f"{file} has more than {_LONGEST:,} characters", hint="name a file of settings")
    if file.suffix in _DOCUMENTS:
        values, remarks = document(file, inherits=table.extends)
    elif file.suffix == ".py":
        if not table.python_class:
            raise ConfigError(f"{file} is a Python file, which {table.title} has no settings in", hint=table.files)
        values, remarks = keyword_arguments(file, table.python_class, table.python_trainer)
    else:
        values, remarks = _of_a_script(table, file)
    if not values:
        raise ConfigError(f"{file} has no settings of {table.title}", hint=f"it reads {table.files}")
    return values, remarks


def _of_a_script(table: PeerTable, file: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        if table.arguments == "dotted":
            return dotted_arguments(text_of(file))
        return option_arguments(text_of(file), prefix=table.option_prefix)
    except RecursionError as error:
        raise ConfigError(f"{file} is nested too deeply", hint="name a script that a shell can run") from error
