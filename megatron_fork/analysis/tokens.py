"""Tokens as readable text, and the table of the tokens that fork."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from megatron_fork.analysis.traces import Trace

# A mean over a few occurrences says little about a token: the table requires the first of these counts that leaves enough
# distinct tokens to rank.
MINIMUM_COUNTS = (20, 10, 5, 3, 2, 1)


@dataclass
class TokenEntropies:
    """One distinct token string; `entropies` in nats, one for each occurrence."""

    text: str
    entropies: list[float] = field(default_factory=list)
    selected: int = 0

    @property
    def count(self) -> int:
        return len(self.entropies)

    @property
    def mean_entropy(self) -> float:
        return math.fsum(self.entropies) / self.count

    @property
    def share_selected(self) -> float:
        return self.selected / self.count


@dataclass(frozen=True)
class ForkTable:
    """Tokens by mean entropy: `forking` highest first, `following` lowest first.

    `distinct` tokens were traced, and `ranked` of them occur at least `minimum_count` times. `not_finite` occurrences
    were left out.
    """

    forking: list[TokenEntropies]
    following: list[TokenEntropies]
    minimum_count: int
    ranked: int
    distinct: int
    not_finite: int


def fork_table(traces: Iterable[Trace], rows: int = 8) -> ForkTable:
    """Rank the distinct traced tokens by mean entropy and keep `rows` from each end; no token is at both ends."""
    statistics: dict[str, TokenEntropies] = {}
    not_finite = 0
    for trace in traces:
        for text, entropy, selected in zip(trace.tokens, trace.entropy, trace.selected, strict=True):
            if not math.isfinite(entropy):
                not_finite += 1
                continue
            token = statistics.setdefault(text, TokenEntropies(text))
            token.entropies.append(entropy)
            token.selected += selected
    counts = [token.count for token in statistics.values()]
    enough = min(4 * rows, 0.75 * len(counts))
    minimum_count = next(
        minimum for minimum in MINIMUM_COUNTS if minimum == 1 or sum(count >= minimum for count in counts) >= enough
    )
    often = [token for token in statistics.values() if token.count >= minimum_count]
    ranked = sorted(often, key=lambda token: (-token.mean_entropy, token.text))
    rows = min(rows, len(ranked) // 2)
    return ForkTable(
        forking=ranked[:rows],
        following=ranked[len(ranked) - rows :][::-1],
        minimum_count=minimum_count,
        ranked=len(ranked),
        distinct=len(statistics),
        not_finite=not_finite,
    )


def visible(text: str) -> str:
    """Return text in which characters that are invisible, or would reorder their neighbours, are spelled out.

    Line breaks and spaces stay. The result can always be encoded as UTF-8.
    """
    return "".join(map(visible_character, text))


def visible_token(text: str) -> str:
    """Return a token for a transcript: a line break is marked and still breaks the line."""
    return visible(text).replace("\n", "⏎\n").replace("\t", "⇥")


def visible_label(text: str) -> str:
    """Return a token for a table cell or a tooltip: one line, each space marked."""
    return visible(text).replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "(empty)"


def visible_character(character: str) -> str:
    if character in "\n\t":
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
