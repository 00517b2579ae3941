"""Settings that a script hands to a trainer on its command line."""

from __future__ import annotations

import re
from typing import Any

import yaml

from megatron_fork.planning.peers.shell_words import Word, commands
from megatron_fork.planning.peers.values import Unresolved
from megatron_fork.recipe import plain, read_yaml

_DOTTED = re.compile(r"(?P<delete>~)?\+{0,2}(?P<name>[A-Za-z_][\w@/]*(?:\.\w+)+)(?:=(?P<value>.*))?", re.DOTALL)
_OPTION = re.compile(r"--(?P<name>[A-Za-z][\w-]*)(?:=(?P<value>.*))?", re.DOTALL)
_PROGRAM = re.compile(r".*\.py|.*/?(python[\d.]*|torchrun|accelerate|trl)")


def dotted_arguments(text: str) -> tuple[dict[str, Any], list[str]]:
    """Values by name of the command with most `a.b=c`, and remarks; options with dashes are kept with them."""
    return _best(text, _of_dotted)


def option_arguments(text: str, *, prefix: str) -> tuple[dict[str, Any], list[str]]:
    """Values by name of the command with most `--name value`; without `prefix` dashes within a name become underscores."""
    return _best(text, lambda words: _of_options(words, prefix))


def _best(text: str, read: Any) -> tuple[dict[str, Any], list[str]]:
    found = list(commands(text))
    programs = [words for words in found if any(_PROGRAM.fullmatch(word.text) for word in words)]
    remarks = [
        f"`{words[0].text} {words[1].text if len(words) > 1 else ''}`: the file that it reads is not read here"
        for words in found
        if words[0].text in ("source", ".")
    ]
    if not programs:  # a list of arguments alone
        return read([word for words in found for word in words]), remarks
    values = [read(words) for words in programs]
    best = max(values, key=len)
    others = sum(1 for each in values if each and each is not best)
    if others:
        remarks.append(f"{others} other command(s) with settings are left out: the one with most is read")
    return best, remarks


def _of_dotted(words: list[Word]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for word in words:
        found = _DOTTED.fullmatch(word.text)
        option = _OPTION.fullmatch(word.text)
        if found and found["delete"]:
            values.pop(found["name"], None)
        elif found and found["value"] is not None:
            values[found["name"]] = _value(found["value"], known=word.known)
        elif option:
            values[f"--{option['name']}"] = _value(option["value"] or "true", known=word.known)
        elif word.text in ("$@", "${@}", "$*"):
            values["$@"] = Unresolved("$@")
    return values


def _of_options(words: list[Word], prefix: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    name = ""
    for word in words:
        found = _OPTION.fullmatch(word.text)
        if found:
            name = f"{prefix}{found['name']}" if prefix else found["name"].replace("-", "_")
            values[name] = True if found["value"] is None else _value(found["value"], known=word.known)
        elif word.text in ("$@", "${@}", "$*") or (not word.known and "[@]" in word.text):
            values[word.text], name = Unresolved(word.text), ""
        elif name and word.text not in ("--", "-m") and not _PROGRAM.fullmatch(word.text):
            value, before = _value(word.text, known=word.known), values[name]
            values[name] = value if before is True else [*(before if isinstance(before, list) else [before]), value]
        else:
            name = ""
    return values


def _value(text: str, *, known: bool) -> Any:
    """A value as YAML and Hydra read it: a number, true or false, null, a list, or text."""
    if not known:
        return Unresolved(text)
    try:
        found = plain(read_yaml(text))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text
    return text if isinstance(found, dict) else found
