"""Settings that a Python program gives a class by keyword. The program is parsed, and never run."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from megatron_fork.errors import ConfigError
from megatron_fork.planning.peers.arithmetic import whole_number
from megatron_fork.planning.peers.documents import text_of
from megatron_fork.planning.peers.values import Unresolved

_NOT_KNOWN = object()


def keyword_arguments(file: Path, called: str, beside: str) -> tuple[dict[str, Any], list[str]]:
    """The keywords of the one call of `called`, with the `model` given to `beside`; raises `ConfigError`."""
    try:
        tree = ast.parse(text_of(file))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{file} is not a readable Python file", hint="check its syntax") from error
    names = _constants(tree)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    chosen = [node for node in calls if _name(node) == called]
    if len(chosen) != 1:
        raise ConfigError(
            f"{file} has {len(chosen)} calls of {called}, not one", hint="keep the one that is to be translated"
        )
    values = {}
    for keyword in chosen[0].keywords:
        found = _literal(keyword.value, names)
        values[keyword.arg or f"**{ast.unparse(keyword.value)}"] = (
            Unresolved(ast.unparse(keyword.value)) if found is _NOT_KNOWN else found
        )
    models = [
        keyword.value for node in calls if _name(node) == beside for keyword in node.keywords if keyword.arg == "model"
    ]
    if models and "model" not in values:
        found = _literal(models[0], names)
        values["model"] = Unresolved(ast.unparse(models[0])) if found is _NOT_KNOWN else found
    positional = [
        f"{called}({ast.unparse(each)}, ...): an argument without a name is left out" for each in chosen[0].args
    ]
    return values, positional


def _constants(tree: ast.Module) -> dict[str, Any]:
    """Values of the names that the file sets once, outside functions and conditions."""
    stored = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return {
        target.id: _literal(node.value, {})
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and stored.count(target.id) == 1
    }


def _name(call: ast.Call) -> str:
    function = call.func
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def _literal(node: ast.expr, names: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return names.get(node.id, _NOT_KNOWN)
    if isinstance(node, ast.BinOp):
        number = whole_number(ast.unparse(node), lambda name: _digits(names.get(name)))
        return _NOT_KNOWN if number is None else number
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _NOT_KNOWN


def _digits(value: Any) -> str | None:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
