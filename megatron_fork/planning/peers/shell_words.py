"""The words of a shell script's commands, as far as they can be known without running it.

Quotes, comments, continued lines, arrays, here-documents, `${NAME:-default}` and whole-number arithmetic are understood. What
would take a shell to know (`$(command)`, the environment, variables set within an `if` or a loop) stays as it is written and
is marked as not known. Nothing is executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from megatron_fork.planning.peers.arithmetic import whole_number

_NAME = re.compile(r"[A-Za-z_]\w*")
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)(?P<more>\+?)=(?P<value>.*)", re.DOTALL)
_PARAMETER = re.compile(r"(?P<name>[A-Za-z_]\w*)(?:\[[@*]\])?(?P<default>:?[-=](?P<text>.*))?", re.DOTALL)
_HERE = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_OPENERS, _CLOSERS = frozenset("if case for while until".split()), frozenset("fi esac done".split())
_LEADERS = frozenset("then else elif do time exec export local readonly declare".split())
_DEEPEST, _LONGEST = 20, 20_000


@dataclass(frozen=True)
class Word:
    """A word of a command, after expansion; `known` is False where a part of it stayed as it was written."""

    text: str
    known: bool = True


@dataclass
class _Variables:
    """Every variable's words; None: set where only a run can tell."""

    found: dict[str, list[Word] | None] = field(default_factory=dict)


def commands(text: str) -> Iterator[list[Word]]:
    """Every command's words in the order of the script, but for those that only set variables."""
    variables, depth = _Variables(), 0
    for raw in _raw_commands(text):
        while raw and raw[0] in _LEADERS:
            raw = raw[1:]
        if raw and raw[0] in _OPENERS | _CLOSERS:
            depth = max(0, depth + (1 if raw[0] in _OPENERS else -1))
            continue
        while raw and (found := _ASSIGNMENT.fullmatch(raw[0])):
            _assign(variables, found, conditional=depth > 0)
            raw = raw[1:]
        if words := [word for each in raw for word in _expanded(each, variables, 0)]:
            yield words


def _assign(variables: _Variables, found: re.Match[str], *, conditional: bool) -> None:
    name, value = found["name"], found["value"]
    array = value.startswith("(") and value.endswith(")")
    if array:
        words = [word for raw in _words(value[1:-1]) for word in _expanded(raw, variables, 0)]
    else:
        words = _expanded(value, variables, 0, split=False) or [Word("")]
    before = variables.found.get(name, [])
    if found["more"] and before is not None:
        words = [*before, *words] if array else [Word("".join(each.text for each in [*before, *words]))]
    unsure = conditional or (bool(found["more"]) and before is None)
    unsure = unsure or sum(len(each.text) for each in words) > _LONGEST
    variables.found[name] = None if unsure else words


def _raw_commands(text: str) -> Iterator[list[str]]:
    """Every command's words as they are written."""
    command: list[str] = []
    for raw in _words(text, ends=True):
        if raw == "\n":
            if command:
                yield command
            command = []
        else:
            command.append(raw)
    if command:
        yield command


def _words(text: str, *, ends: bool = False) -> Iterator[str]:
    """Words as they are written; with `ends`, a line break for what ends a command."""
    at, word = 0, ""
    waiting: list[str] = []
    while at < len(text):
        here = text[at]
        if text.startswith("\\\n", at):
            at += 2
        elif here in " \t\r\n" or (here in ";|&()" and not word.endswith(("=", ">")) and not _opens_array(here, word)):
            if word:
                yield word
            word, at = "", at + 1
            if ends and here in "\n;|&()":
                yield "\n"
            if here == "\n" and waiting:
                at, waiting = _after_documents(text, at, waiting), []
        elif here == "#" and not word:
            at = (text.find("\n", at) + len(text)) % len(text) if "\n" in text[at:] else len(text)
        elif here == "<" and (found := _HERE.match(text, at)):
            waiting, at = [*waiting, found[2]], found.end()
        else:
            end = _end_of_piece(text, at)
            word, at = word + text[at:end], end
    if word:
        yield word


def _opens_array(here: str, word: str) -> bool:
    return here == "(" and bool(_ASSIGNMENT.fullmatch(word)) and word.endswith("=")


def _after_documents(text: str, at: int, waiting: list[str]) -> int:
    for name in waiting:
        found = re.compile(rf"^[ \t]*{re.escape(name)}$", re.MULTILINE).search(text, at)
        at = found.end() if found else len(text)
    return at


def _end_of_piece(text: str, at: int) -> int:
    """The end of the quoted text, expansion, array or single character that begins here."""
    here = text[at]
    if here == "\\":
        return min(len(text), at + 2)
    if here == "'":
        return _after(text, text.find("'", at + 1))
    if here == "`":
        return _after(text, text.find("`", at + 1))
    if here == '"':
        at += 1
        while at < len(text) and text[at] != '"':
            at = _end_of_piece(text, at) if text[at] in "\\$`" else at + 1
        return min(len(text), at + 1)
    if here == "(":
        return _balanced(text, at, "(", ")")
    if text.startswith("$(", at):
        return _balanced(text, at + 1, "(", ")")
    if text.startswith("${", at):
        return _balanced(text, at + 1, "{", "}")
    return at + 1


def _after(text: str, found: int) -> int:
    return len(text) if found < 0 else found + 1


def _balanced(text: str, at: int, opens: str, closes: str) -> int:
    depth = 0
    while at < len(text):
        if text[at] == opens:
            depth += 1
        elif text[at] == closes:
            depth -= 1
        elif text[at] == "\\":
            at += 1
        elif text[at] in "'\"" and opens == "(":
            at = _end_of_piece(text, at) - 1
        elif text[at] == "#" and opens == "(" and text[at - 1] in " \t\n(":
            at = text.find("\n", at) if "\n" in text[at:] else len(text)
        at += 1
        if depth == 0:
            break
    return min(at, len(text))


def _expanded(raw: str, variables: _Variables, depth: int, *, split: bool = True) -> list[Word]:
    """The words that one written word stands for."""
    words: list[Word] = []
    text, known, begun = "", True, False
    at, quoted = 0, False
    while at < len(raw):
        here = raw[at]
        if here == '"':
            quoted, begun, at = not quoted, True, at + 1
        elif here == "'" and not quoted:
            end = _end_of_piece(raw, at)
            text, begun, at = text + raw[at + 1 : end - 1], True, end
        elif here == "\\":
            text, begun, at = text + raw[at + 1 : at + 2], True, at + 2
        elif here in "$`":
            end = _end_of_expansion(raw, at)
            found = _value(raw[at:end], variables, depth)
            if found is None:
                text, known, begun = text + raw[at:end], False, True
            else:
                parts = [part for each in found for part in ([each] if quoted or not split else _split(each))]
                for place, each in enumerate(parts):
                    if place:
                        words.append(Word(text, known))
                        text, known = "", True
                    text, known, begun = text + each.text, known and each.known, True
            at = end
        else:
            text, begun, at = text + here, True, at + 1
    if begun and (text or not split or '"' in raw or "'" in raw):
        words.append(Word(text, known))
    return words


def _split(word: Word) -> list[Word]:
    return [Word(part, word.known) for part in word.text.split()]


def _end_of_expansion(raw: str, at: int) -> int:
    if raw[at] == "`" or raw.startswith(("$(", "${"), at):
        return _end_of_piece(raw, at)
    found = _NAME.match(raw, at + 1)
    return found.end() if found else min(len(raw), at + 2)


def _value(expansion: str, variables: _Variables, depth: int) -> list[Word] | None:
    """The words of `$NAME`, `${NAME}`, `${NAME:-default}` or `$((...))`; None where they are not known."""
    if depth > _DEEPEST:
        return None
    if expansion.startswith("$((") and expansion.endswith("))"):
        number = whole_number(expansion[3:-2], lambda name: _number_text(name, variables))
        return None if number is None else [Word(str(number))]
    inner = expansion[2:-1] if expansion.startswith("${") else expansion[1:]
    found = _PARAMETER.fullmatch(inner)
    if not found or expansion.startswith(("$(", "`")):
        return None
    if found["name"] in variables.found:
        return variables.found[found["name"]]
    if found["default"] is None:
        return None
    return _expanded(found["text"] or "", variables, depth + 1, split=False) or [Word("")]


def _number_text(name: str, variables: _Variables) -> str | None:
    words = variables.found.get(name)
    return words[0].text if words and len(words) == 1 and words[0].known else None
