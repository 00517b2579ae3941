r"""The boxes of a published solution, in the forms that TeX has: `\boxed{2}`, `\fbox{2}`, `\boxed 2`."""

from __future__ import annotations

import re

OPENING = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
END_OF_FORMULA = re.compile(r"\$|\\\)|\\\]|\\end(?![A-Za-z])")


def boxed_answers(solution: str) -> list[str]:
    """What stands in each outermost box, different ones only, in their order; a box that is not closed is none."""
    found, place = [], 0
    while opening := OPENING.search(solution, place):
        if solution.startswith("{", opening.end()):
            content, place = _braced(solution, opening.end())
        else:
            content, place = _bare(solution, opening.end())
        if content is not None:
            found.append(content.strip())
    return list(dict.fromkeys(found))


def _braced(text: str, start: int) -> tuple[str | None, int]:
    """(content, place behind it) of the group that opens at `start`."""
    depth = 0
    for token in BRACE.finditer(text, start):
        depth += (token[0] == "{") - (token[0] == "}")
        if depth == 0:
            return text[start + 1 : token.start()], token.end()
    return None, start


def _bare(text: str, start: int) -> tuple[str | None, int]:
    """Without braces it goes on to the end of the formula, as problem sets mean it; outside of one, to the end of the word."""
    line = text[start:].split("\n", 1)[0]
    end = END_OF_FORMULA.search(line)
    content = line[: end.start()] if end else line.split(" ", 1)[0].rstrip(".,;:")
    return content.strip() or None, start + len(content)
