r"""What only typesets is dropped from an answer, so that the same thing has one spelling.

Dollar signs, `\( \)`, sizes and styles, wide spaces, `\left` and `\right`, an enclosing box, the full stop. Units and words
in `\text{...}` stay: they may matter.
"""

from __future__ import annotations

import re

from megatron_fork.rewards.extraction import last_boxed

# The second backslash of a row separator `\\` begins no command.
COMMAND = r"(?<!\\)\\"
IGNORED = re.compile(
    COMMAND
    + r"(?:[()\[\]]|(?:displaystyle|textstyle|left|right|[bB]ig[lr]?|[lL]arge|small|bf|bfseries|rm|limits)(?![a-zA-Z]))"
)
STYLED = re.compile(COMMAND + r"(?:mathbf|boldsymbol|bm|textbf|textit|mathit|mathsf|emph)\s*\{([^{}]*)\}")
NUMBER_AS_TEXT = re.compile(COMMAND + r"(?:text|mathrm|mbox)\s*\{\s*([-+]?[0-9][0-9.,/]*)\s*\}")
FRACTION = re.compile(COMMAND + r"[dtc]frac(?![a-zA-Z])")
PERCENT = re.compile(r"\s*" + COMMAND + r"(?:text|mathrm|mbox)\s*\{\s*(?:percent|per cent|\\?%)\s*\}")
DEGREES = re.compile(r"\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|°|\\degree(?![a-zA-Z]))")
# A thin space between digits separates thousands and is left to the number parser.
THIN_SPACE = re.compile(r"(?<![\\0-9,])\\[,!]|(?<!\\)\\(?:[,!](?![0-9])|[;:](?![0-9])|(?=\s))|~")
WIDE_SPACE = re.compile(COMMAND + r"q?quad(?![a-zA-Z])")
MINUS = str.maketrans({"\u2212": "-", "\u2013": "-", "\uff0c": ",", "\u00d7": r"\times "})


def clean(text: str) -> str:
    """The one spelling of an answer."""
    boxed = last_boxed(text)
    if boxed is not None:
        text = boxed
    text = text.translate(MINUS).replace("**", "")
    text = IGNORED.sub("", re.sub(r"\\?\$", "", text))
    text = NUMBER_AS_TEXT.sub(r"\1", STYLED.sub(r"\1", text))
    text = FRACTION.sub(r"\\frac", PERCENT.sub(r"\\%", text))
    text = DEGREES.sub(r"\\text{ degrees}", text)
    text = WIDE_SPACE.sub(" ", THIN_SPACE.sub(" ", text))
    return " ".join(text.split()).removesuffix(".").rstrip()
