"""How many tokens the lenses may take: what would exceed it is not begun, and is counted as left out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TokenBudget:
    """Tokens that models read and draw, all lenses together."""

    limit: int | None = None
    spent: int = 0

    def take(self, tokens: int) -> bool:
        """Whether `tokens` more fit; they are then spent."""
        if self.limit is not None and self.spent + tokens > self.limit:
            return False
        self.spent += tokens
        return True
