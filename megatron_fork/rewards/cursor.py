"""A position among the tokens of an answer, and the steps that a parser takes from it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from megatron_fork.rewards.score import NotAValueError
from megatron_fork.rewards.tokens import Token


class Cursor:
    """Reads `tokens` from `place` on."""

    def __init__(self, tokens: list[Token], *, units_allowed: bool = True) -> None:
        self.tokens = list(tokens)
        self.place = 0
        self.units_allowed = units_allowed
        self.has_equals = any(token.text == "=" for token in tokens)

    def peek(self, ahead: int = 0) -> Token | None:
        place = self.place + ahead
        return self.tokens[place] if place < len(self.tokens) else None

    def previous(self) -> Token | None:
        return self.tokens[self.place - 1] if self.place else None

    @property
    def here(self) -> str:
        token = self.peek()
        return "at its end" if token is None else f"at {token}"

    def next(self) -> Token:
        token = self.peek()
        if token is None:
            raise NotAValueError("ends where a value is expected")
        self.place += 1
        return token

    def at(self, *texts: str) -> bool:
        if self.place >= len(self.tokens):
            return False
        token = self.tokens[self.place]
        return token.text in texts and token.kind in ("mark", "command")

    def take(self, *texts: str) -> Token | None:
        if self.place >= len(self.tokens):
            return None
        token = self.tokens[self.place]
        if token.text not in texts or token.kind not in ("mark", "command"):
            return None
        self.place += 1
        return token

    def expect(self, text: str) -> None:
        if self.take(text) is None:
            raise NotAValueError(f"has no {text} {self.here}")

    def split(self, token: Token, length: int = 1, *, back: bool = False) -> None:
        """Replace `token` by two: its first `length` characters and the rest; `back`: it was read already."""
        place = self.place - 1 if back else self.place
        first, rest = token.text[:length], token.text[length:]
        whole = token.kind == "number"
        if whole and not token.text.isdigit():
            raise NotAValueError(f"has {token} where one digit is expected")
        middle = token.start + length
        parts = [
            replace(token, text=first, end=middle, value=Fraction(int(first)) if whole else None),
            replace(token, text=rest, start=middle, spaced=False, value=Fraction(int(rest)) if whole else None),
        ]
        self.tokens[place : place + 1] = [part for part in parts if part.text]
        self.place = place

    def at_degrees(self) -> bool:
        r"""Whether the next tokens are `^\circ`, `^{\circ}` or `\degree`."""
        if self.at(r"\degree", r"\degrees"):
            return True
        if not self.at("^"):
            return False
        first, second, third = self.peek(1), self.peek(2), self.peek(3)
        if first is not None and first.text == r"\circ":
            return True
        texts = [each.text if each is not None else "" for each in (first, second, third)]
        return texts == ["{", r"\circ", "}"]

    def skip_degrees(self) -> None:
        if self.take(r"\degree", r"\degrees"):
            return
        self.expect("^")
        braced = self.take("{")
        self.expect(r"\circ")
        if braced:
            self.expect("}")

    def subscript(self) -> str:
        """The text of an index after `_`: letters and digits."""
        if not self.take("{"):
            token = self.next()
            if token.kind not in ("word", "number") and token.text not in (r"\max", r"\min"):
                raise NotAValueError(f"has {token} as an index")
            if len(token.text) > 1:
                self.place -= 1
                self.split(token)
                self.place += 1
                return token.text[0]
            return token.text
        text = ""
        while not self.at("}"):
            token = self.next()
            plain = token.kind in ("word", "number") or token.text in ("+", "-", ",")
            if not plain and not token.text.lstrip("\\").isalpha():
                raise NotAValueError(f"has {token} in an index")
            text += token.text
        self.expect("}")
        return text
