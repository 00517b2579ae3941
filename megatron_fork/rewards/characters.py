# ruff: noqa: RUF001 (this file is about characters that look alike)
r"""The characters that an answer may hold, in one spelling: full-width digits, `√`, `½`, `x²`, `−`, `π` and others.

A text with an unknown character is not an answer: nobody can say what value a zero-width space, a control character or a letter
of another alphabet that looks like a known one gives.
"""

from __future__ import annotations

import re

from megatron_fork.rewards.score import NotAValueError

SPACES = "\t\n\r\f\v\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
WHITE = " " + SPACES
# Every full-width form of ASCII except those that have a meaning in TeX.
FULL_WIDTH = {chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F) if chr(code) not in "\\#$&@_`~\"'{}"}
GREEK = dict(
    zip(
        "αβγδεζηθικλμνξπρστυφχψωϵϑϕϖΓΔΘΛΞΦΨΩ",
        (
            "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi "
            "omega epsilon vartheta phi varpi Gamma Delta Theta Lambda Xi Phi Psi Omega"
        ).split(),
        strict=True,
    )
)
RELATIONS = {"≤": "le", "≥": "ge", "⩽": "le", "⩾": "ge", "≦": "le", "≧": "ge", "≠": "ne", "∈": "in"}
OPERATORS = {
    "×": "times", "·": "cdot", "⋅": "cdot", "∙": "cdot", "÷": "div", "±": "pm", "∓": "mp", "∪": "cup", "∩": "cap",
    "∖": "setminus", "∣": "mid",
}  # fmt: skip
VALUES = {"∞": "infty", "∅": "emptyset", "∠": "angle", "△": "triangle", "⌊": "lfloor", "⌋": "rfloor", "⌈": "lceil"}
SETS = {"ℝ": "R", "ℤ": "Z", "ℕ": "N", "ℚ": "Q", "ℂ": "C"}
PLAIN = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "﹣": "-", "∕": "/", "⁄": "/", "∗": "*", "、": ",", "。": ".", "｛": r"\{",
    "｝": r"\}", "“": '"', "”": '"', "’": "'", "‘": "'", "￥": "¥", "＄": "$", "⟨": r"\langle ", "⟩": r"\rangle ",
    "⌉": r"\rceil ", "…": r"\ldots ", "°": r"^{\circ}", "℃": r"^{\circ}C", "㎝": "cm", "㎏": "kg", "㎡": r"\text{m}^2",
}  # fmt: skip
FRACTIONS = dict(zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "12 13 23 14 34 15 25 35 45 16 56 18 38 58 78".split(), strict=True))
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))

SPELLINGS: dict[int, str] = {
    ord(character): spelling
    for character, spelling in {
        **dict.fromkeys(SPACES, " "),
        **FULL_WIDTH,
        **{character: rf"\{name} " for character, name in {**GREEK, **RELATIONS, **OPERATORS, **VALUES}.items()},
        **{character: rf"\mathbb{{{name}}}" for character, name in SETS.items()},
        **PLAIN,
        **{character: rf"\frac{digits}" for character, digits in FRACTIONS.items()},
    }.items()
}
RAISED_RUN = re.compile(f"[{''.join(RAISED)}]+")
LOWERED_RUN = re.compile(f"[{''.join(LOWERED)}]+")
PLAIN_ASCII = re.compile(r"[ -~]*")
UNKNOWN = re.compile(r"[^\x20-\x7e√∛€£¥₹¢\u4e00-\u9fff]")


def canonical(text: str) -> str:
    """`text` in ASCII, `√∛€£¥₹` and Chinese characters; raises NotAValueError on any other."""
    if PLAIN_ASCII.fullmatch(text):
        return text
    if not text.isascii():
        text = RAISED_RUN.sub(lambda run: "^{" + "".join(RAISED[each] for each in run[0]) + "}", text)
        text = LOWERED_RUN.sub(lambda run: "_{" + "".join(LOWERED[each] for each in run[0]) + "}", text)
    text = text.translate(SPELLINGS)
    unknown = UNKNOWN.search(text)
    if unknown:
        raise NotAValueError(f"has the character U+{ord(unknown[0]):04X}, which no answer may have")
    return text
