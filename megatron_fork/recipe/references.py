r"""References in a recipe: `${oc.env:NAME}` for a variable of the environment, `${train.steps}` for another field's value.

OmegaConf resolves them in memory only. The files of a run keep the reference, so that no file holds a key from the
environment; `\${` stands for the two characters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from megatron_fork.errors import ConfigError, hide, masked
from megatron_fork.recipe.text import Written, plain

_OPENING, _ESCAPED = "${", "\\${"
_VARIABLE = re.compile(r"oc\.env:\s*(\w+)")


class Resolved(str):
    """The text that a reference resolves to; `written` is the reference."""

    written: str

    def __new__(cls, value: str, written: str) -> Resolved:
        resolved = super().__new__(cls, value)
        resolved.written = written
        return resolved

    def __reduce__(self) -> tuple[type[Resolved], tuple[str, str]]:
        return Resolved, (str(self), self.written)


def resolve(tree: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Replace every reference in the tree by its value.

    Args:
        tree: what the recipe and overrides contain, values as `Written` or text.
        defaults: of all fields, for references to fields that are not in the tree.

    Raises:
        ConfigError: a reference that cannot be resolved, with the field that holds it.

    """
    if not _holds_reference(tree):
        return tree
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        everything = OmegaConf.merge(OmegaConf.create(_literal(dict(defaults))), OmegaConf.create(plain(tree)))
    except OmegaConfBaseException as error:
        raise _refused(str(error.full_key or "a field"), error) from error

    def value_of(text: str, path: str) -> Any:
        for name in _VARIABLE.findall(text):  # before any message can show their values
            hide(os.environ.get(name, ""), named=name)
        try:
            value = OmegaConf.select(everything, path, throw_on_missing=True, throw_on_resolution_failure=True)
        except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
            raise _refused(path, error) from error
        if OmegaConf.is_config(value):
            raise ConfigError(f"{path}={text} refers to a group of fields", hint="refer to a single field")
        if "oc.env" in text:
            hide(str(value), named=text)
        is_escape = _OPENING not in text.replace(_ESCAPED, "")
        held = str(value) if is_escape else Resolved(str(value), text)
        return held if isinstance(value, str) else Written(held, value)

    return dict(_mapped(tree, value_of, ""))


def as_written(value: Any) -> Any:
    """A tree of settings as a recipe writes it: references unresolved, literal `${` escaped, logins masked."""
    if isinstance(value, dict):
        return {key: as_written(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [as_written(entry) for entry in value]
    if isinstance(value, Resolved):
        return value.written
    return _literal(masked(value)) if isinstance(value, str) else value


def _literal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _literal(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_literal(entry) for entry in value]
    return value.replace(_OPENING, _ESCAPED) if isinstance(value, str) else value


def _holds_reference(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_reference(entry) for entry in value.values())
    if isinstance(value, list):
        return any(_holds_reference(entry) for entry in value)
    return isinstance(value, str) and _OPENING in value


def _mapped(value: Any, value_of: Callable[[str, str], Any], path: str) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(entry, value_of, f"{path}.{key}".lstrip(".")) for key, entry in value.items()}
    if isinstance(value, list):
        return [_mapped(entry, value_of, f"{path}[{index}]") for index, entry in enumerate(value)]
    return value_of(value, path) if isinstance(value, str) and _OPENING in value else value


def _refused(path: str, error: Exception) -> ConfigError:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return ConfigError(
        f"{path}: a reference cannot be resolved: {reason}",
        hint="${oc.env:NAME} is an environment variable, ${train.steps} a field; write \\${ for the characters themselves",
    )
