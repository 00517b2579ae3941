"""What a recipe or an override may be before it is read: of sane size, depth and repetition.

A line of YAML can stand for billions of values by its aliases, and a few kilobytes of brackets for more levels than any reader
comes back from. Both are found on the text's own nodes, of which an alias is one.
"""

from __future__ import annotations

import yaml

_MOST_CHARACTERS = 1 << 20
_MOST_VALUES = 20_000
_DEEPEST = 20


def refuse_monstrous(text: str) -> None:
    """Raise `ValueError` with the reason where YAML text is too large, too deep, or repeats itself without end."""
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
