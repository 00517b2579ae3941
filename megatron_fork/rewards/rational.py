r"""Plain numbers as people write them in LaTeX, read as exact fractions.

A plain number is an integer, a decimal, a fraction (`3/4`, `\frac{3}{4}`, `\frac34`), a mixed number (`1\frac{3}{4}`), one
in scientific notation (`1.5 \times 10^{-3}`, `1.5e-3`, `10^6`) or of another base (`1011_2`), with a sign, thousands
separators or a percent sign where wanted. Anything else that would have to be evaluated is not one.
"""

from __future__ import annotations

import re
from fractions import Fraction

# Bounds the arithmetic; Python refuses to convert more than 4300 digits anyway.
MAX_CHARACTERS = 2000

DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
EXPONENT = r"(?:[+-]?[0-9]{1,3}|\{\s*[+-]?\s*[0-9]{1,3}\s*\})"
SIGNED = rf"[+-]?\s*{DECIMAL}"
NUMBER = re.compile(
    rf"""(?P<sign>[+-]?)\s*
    (?:
        (?P<decimal>{DECIMAL})
      | (?P<mantissa>{DECIMAL})\s*(?:[eE]|(?:\\times|\\cdot|\*)\s*10\s*\^)\s*(?P<exponent>{EXPONENT})
      | 10\s*\^\s*(?P<power>{EXPONENT})
      | (?P<digits>[0-9][0-9A-Z]*|[0-9A-F]+(?=_\{{?16))_(?P<base>[0-9]|\{{[0-9]{{1,2}}\}})
      | (?P<over>{DECIMAL})\s*/\s*(?P<under>{DECIMAL})
      | (?P<whole>[0-9]+)?\s*\\[dtc]?frac\s*
        (?: \{{\s*(?P<numerator>{SIGNED})\s*\}} | (?P<top>[0-9]) )\s*
        (?: \{{\s*(?P<denominator>{SIGNED})\s*\}} | (?P<bottom>[0-9]) )
    )
    \s*(?P<percent>(?:\\?%)?)""",
    re.VERBOSE,
)
# `1{,}000`, `1\,000`, `1\;000` and `1,\!000` are typeset thousands separators.
TYPESET_SEPARATOR = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[,!;:])\s*(?=[0-9]{3}(?![0-9]))")


def parse_number(text: str) -> Fraction | None:
    """The exact value of a plain number, or None where `text` is not one (or is longer than `MAX_CHARACTERS`)."""
    if len(text) > MAX_CHARACTERS:
        return None
    match = NUMBER.fullmatch(TYPESET_SEPARATOR.sub(",", text.strip()))
    if match is None:
        return None
    magnitude = _magnitude(match)
    if magnitude is None:
        return None
    value = -magnitude if match["sign"] == "-" else magnitude
    return value / 100 if match["percent"] else value


def _magnitude(match: re.Match[str]) -> Fraction | None:
    if match["decimal"] is not None:
        return _decimal(match["decimal"])
    if match["mantissa"] is not None or match["power"] is not None:
        return _decimal(match["mantissa"] or "1") * Fraction(10) ** _integer(match["exponent"] or match["power"])
    if match["digits"] is not None:
        return _of_base(match["digits"], _integer(match["base"]))
    numerator = _decimal(match["over"] or match["numerator"] or match["top"])
    denominator = _decimal(match["under"] or match["denominator"] or match["bottom"])
    if denominator == 0:
        return None
    fraction = numerator / denominator
    if match["whole"] is None:
        return fraction
    # `2\frac{1}{2}` is two and a half, but `2\frac{-1}{2}` and `2\frac{7}{2}` are products and no plain numbers.
    return int(match["whole"]) + fraction if 0 < fraction < 1 else None


def _of_base(digits: str, base: int) -> Fraction | None:
    try:
        return Fraction(int(digits, base)) if base else None  # base 0 would read the digits as Python does
    except ValueError:
        return None


def _integer(text: str) -> int:
    return int(re.sub(r"[{}\s]", "", text))


def _decimal(text: str) -> Fraction:
    digits = re.sub(r"[,\s]", "", text)
    return Fraction(digits + "0" if digits.endswith(".") else digits)
