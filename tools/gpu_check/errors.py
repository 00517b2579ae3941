"""What cannot go on, in one line with the way out."""

from __future__ import annotations


class CheckError(Exception):
    """`exit_code` 2: the command line cannot be used; 1: this machine cannot."""

    def __init__(self, message: str, *, hint: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.hint = hint
        self.exit_code = exit_code
