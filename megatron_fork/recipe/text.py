"""The text of a recipe or an override: of sane size, depth and repetition, and read without losing how a value was written.

A line of YAML can stand for billions of values by its aliases, and a few kilobytes of brackets for more levels than any reader
comes back from. Both are found on the text's own nodes, of which an alias is one. And YAML makes 20261127 of `2026_11_27`, 750
of `12:30` and False of `off`: what such words mean is for the field to say, so each is kept with its characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

_MOST_CHARACTERS = 1 << 20
_MOST_VALUES = 20_000
_DEEPEST = 20
_TAG = "tag:yaml.org,2002:"
# YAML 1.1 takes 1e-6 for text, for want of a dot, 010 for 8 and 12:30 for 750; whoever writes a recipe does not.
_FLOAT = re.compile(
    r"(?:[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_INTEGER = re.compile(r"[-+]?(?:0x[\da-fA-F_]+|0b[01_]+|\d[\d_]*)$")


@dataclass(frozen=True)
class Written:
    """A value that YAML takes for a number, true, false or null, and the characters that it was written in."""

    text: str
    value: Any


def read_yaml(text: str) -> Any:
    """What YAML text holds, such values as `Written`; raises `ValueError` or `yaml.YAMLError` with the reason."""
    _refuse_monstrous(text)
    return yaml.load(text, Loader=_Reader)


def plain(value: Any) -> Any:
    """A value as YAML has it, whatever it was written like."""
    if isinstance(value, dict):
        return {key_text(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return value.value if isinstance(value, Written) else value


def key_text(key: Any) -> str:
    """The name of a field."""
    return key.text if isinstance(key, Written) else str(key)


def write_yaml(tree: Any) -> str:
    """YAML that `read_yaml` gives back as it was: text that would be taken for a number is quoted."""
    return yaml.dump(tree, Dumper=_Writer, sort_keys=False, allow_unicode=True)


def _refuse_monstrous(text: str) -> None:
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters")
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None:
        _values(root, {}, ())


def _values(node: yaml.Node, known: dict[int, int], above: tuple[int, ...]) -> int:
    """How many values a node stands for, those of its aliases each time."""
    if id(node) in above:
        raise ValueError("it contains itself by an alias")
    if len(above) > _DEEPEST:  # through aliases
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
    if id(node) not in known:
        below: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            below = node.value
        elif isinstance(node, yaml.MappingNode):
            below = [each for pair in node.value for each in pair]
        known[id(node)] = 1 + sum(_values(each, known, (*above, id(node))) for each in below)
        if known[id(node)] > _MOST_VALUES:
            raise ValueError(f"it stands for more than {_MOST_VALUES:,} values")
    return known[id(node)]


class _Reader(yaml.SafeLoader):
    """SafeLoader, which keeps the characters, knows no dates, and refuses a field that is written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge"]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is written twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


class _Writer(yaml.SafeDumper):
    """SafeDumper, which quotes what `_Reader` would take for something else, and repeats instead of aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Unicode's line breaks are folded by YAML, and end a line for others: escaped, they stay."""
        style = '"' if any(each in data for each in "\x85\u2028\u2029") else None
        return self.represent_scalar(f"{_TAG}str", data, style=style)


_Writer.add_representer(str, _Writer.represent_str)


def _with_text(construct: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Written]:
    return lambda loader, node: Written(node.value, construct(loader, node))


def _float(loader: _Reader, node: yaml.ScalarNode) -> float:
    return float(node.value.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))


def _integer(loader: _Reader, node: yaml.ScalarNode) -> int:
    digits = node.value.lower()
    return int(digits, 16 if "x" in digits else 2 if "b" in digits else 10)


_OTHERWISE = (f"{_TAG}timestamp", f"{_TAG}float", f"{_TAG}int")
_Reader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in _OTHERWISE]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# The writer keeps YAML 1.1's own rules too: others read what it writes.
for each in (_Reader, _Writer):
    each.add_implicit_resolver(f"{_TAG}int", _INTEGER, list("-+0123456789"))
    each.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))
_Reader.add_constructor(f"{_TAG}int", _with_text(_integer))
_Reader.add_constructor(f"{_TAG}float", _with_text(_float))
for name in ("bool", "null"):
    _Reader.add_constructor(f"{_TAG}{name}", _with_text(yaml.SafeLoader.yaml_constructors[f"{_TAG}{name}"]))
