"""Texts of tokens, and any other texts of models, as something that can be read."""

from __future__ import annotations

import unicodedata


def visible(text: str) -> str:
    """Return text in which characters that are invisible, or would reorder their neighbours, are spelled out.

    Line breaks and spaces stay. The result can always be encoded as UTF-8.
    """
    # Almost every line is printable, and found so at once.
    lines = text.split("\n")
    return "\n".join(line if line.isprintable() else "".join(map(visible_character, line)) for line in lines)


def visible_label(text: str) -> str:
    """Return a token for a table cell or a tooltip: one line, each space marked."""
    return visible(text).replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "(empty)"


def visible_character(character: str) -> str:
    if character == "\t":
        return character
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))
    # Bytes that are not text are the surrogates that `surrogateescape` makes of them.
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return f"⟨0x{ord(character) - 0xDC00:02X}⟩"
    # Controls, format characters (which hold the bidirectional overrides), lone surrogates and unassigned code points.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn"):
        return f"⟨U+{ord(character):04X}⟩"
    return character
