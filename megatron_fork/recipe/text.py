"""The text of a recipe or an override: limited in size, depth and repetition, and read with every value as it was written.

With aliases a line of YAML can stand for billions of values, and a few kilobytes of brackets overflow any reader's stack.
Both are detected on the nodes of the text, where an alias is a single node. And YAML reads `2026_11_27` as 20261127, `12:30`
as 750 and `off` as False: the field decides what such words mean, so each value is kept with its characters.
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
# YAML 1.1 reads 1e-6 as text, since it has no dot, 010 as 8 and 12:30 as 750; nobody means that in a recipe.
_FLOAT = re.compile(
    r"(?:[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_INTEGER = re.compile(r"[-+]?(?:0x[\da-fA-F_]+|0b[01_]+|\d[\d_]*)$")


@dataclass(frozen=True)
class Written:
    """A value that YAML reads as a number, true, false or null, and the characters that it was written in."""

    text: str
    value: Any


def read_yaml(text: str) -> Any:
    """The content of YAML text, with numbers, booleans and null as `Written`; raises `ValueError` or `yaml.YAMLError`."""
    _refuse_monstrous(text)
    return yaml.load(text, Loader=_Reader)


def plain(value: Any) -> Any:
    """The value as YAML reads it, without the characters that it was written in."""
    if isinstance(value, dict):
        return {key_text(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return value.value if isinstance(value, Written) else value


def key_text(key: Any) -> str:
    """The name of a field as text."""
    return key.text if isinstance(key, Written) else str(key)


def write_yaml(tree: Any) -> str:
    """YAML that `read_yaml` reads back unchanged: text that looks like a number is quoted."""
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
    """How many values a node stands for; those behind an alias count each time."""
    if id(node) in above:
        raise ValueError("it contains itself through an alias")
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
    """A SafeLoader that keeps the characters, does not read dates, and refuses a field that is written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge"]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is written twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


class _Writer(yaml.SafeDumper):
    """A SafeDumper that quotes text which `_Reader` would read as something else, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Quote text with Unicode's line breaks, which YAML would fold: they are then escaped and kept."""
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
# The writer also keeps YAML 1.1's own rules, since other programs read its files.
for each in (_Reader, _Writer):
    each.add_implicit_resolver(f"{_TAG}int", _INTEGER, list("-+0123456789"))
    each.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))
_Reader.add_constructor(f"{_TAG}int", _with_text(_integer))
_Reader.add_constructor(f"{_TAG}float", _with_text(_float))
for name in ("bool", "null"):
    _Reader.add_constructor(f"{_TAG}{name}", _with_text(yaml.SafeLoader.yaml_constructors[f"{_TAG}{name}"]))
