"""Why a text is no answer that could be compared."""

from __future__ import annotations


class NotAValueError(Exception):
    """The text is not of the grammar; the message is the rest of a sentence about it."""


class TooCostlyError(NotAValueError):
    """Its value would cost more to find than an answer may."""
