"""The data of the page's script: facts and texts as JSON, and what each shown token has as typed arrays in base64."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy

from megatron_fork.analysis.page.responses import VERDICTS, Facts, Part, Vocabulary
from megatron_fork.analysis.page.sampling import Budget
from megatron_fork.analysis.page.token_table import TokenRow
from megatron_fork.analysis.tokens import visible

# Entropies and log-probs, in nats, are written as whole numbers of 16 bits: 0 is unknown, 1 below `LOWEST`, `INFINITE` above
# all; between them each is larger than the one before by the same factor, so that a value is exact to 0.02 %.
LOWEST, HIGHEST, INFINITE = 1e-6, 1e3, 0xFFFF
STEP = math.log(HIGHEST / LOWEST) / (INFINITE - 3)
# A token or a prompt may be of any length; more of it than this is not for reading. In characters.
LONGEST_TOKEN, LONGEST_TEXT = 400, 20_000


def codes(values: numpy.ndarray) -> numpy.ndarray:
    """The uint16 numbers of values in nats, which are not negative but for rounding."""
    values = values.astype(numpy.float64)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        steps = numpy.round(numpy.log(numpy.maximum(values, LOWEST) / LOWEST) / STEP)
    found = numpy.where(values < LOWEST, 1, numpy.minimum(numpy.nan_to_num(steps, posinf=0xFFFF) + 2, INFINITE))
    return numpy.where(numpy.isnan(values), 0, found).astype(numpy.uint16)


def surprisals(logprob: numpy.ndarray) -> numpy.ndarray:
    """-log p; NaN where a number is none. Rounding may lift the log-prob of a certain token slightly above 0."""
    return numpy.where(logprob <= 1e-3, numpy.maximum(-logprob, 0), numpy.nan)


def cut(text: str, longest: int) -> str:
    """The text, made visible; what is beyond `longest` characters is counted instead."""
    beyond = len(text) - longest
    return visible(text) if beyond <= 0 else f"{visible(text[:longest])}… ({beyond:,} more characters)"


@dataclass
class Payload:
    """Collects what the page shows; `tokens` of the responses are numbers of `vocabulary` until `data` numbers them anew."""

    vocabulary: Vocabulary
    budget: Budget
    facts: list[Facts] = field(default_factory=list)
    measured: list[bool] = field(default_factory=list)
    means: list[float | None] = field(default_factory=list)
    counts_selected: list[int] = field(default_factory=list)
    _tokens: list[numpy.ndarray] = field(default_factory=list)
    _entropies: list[numpy.ndarray] = field(default_factory=list)
    _surprisals: list[numpy.ndarray] = field(default_factory=list)
    _selected: list[numpy.ndarray] = field(default_factory=list)

    def add(self, part: Part, places: Iterable[int]) -> None:
        """Add the responses at `places` of a part."""
        for place in places:
            first, last = int(part.starts[place]), int(part.starts[place + 1])
            entropy, selected = part.entropy[first:last], part.selected[first:last]
            finite = entropy[numpy.isfinite(entropy)].astype(numpy.float64)
            shown = slice(first, min(last, first + self.budget.per_response))
            self.facts.append(part.facts[place])
            self.measured.append(bool(part.has_entropy[place]))
            self.means.append(float(finite.mean()) if len(finite) else None)
            self.counts_selected.append(int(selected.sum()))
            self._tokens.append(part.tokens[shown])
            finite_entropy = numpy.where(numpy.isfinite(part.entropy[shown]), part.entropy[shown], numpy.nan)
            self._entropies.append(codes(finite_entropy))
            self._surprisals.append(codes(surprisals(part.logprob[shown])))
            self._selected.append(part.selected[shown])

    @property
    def tokens_cut(self) -> int:
        """Tokens beyond the budget of a response."""
        return sum(max(facts.length - self.budget.per_response, 0) for facts in self.facts)

    def data(self, table: list[TokenRow], *, top: float, levels: int, at_least: int) -> tuple[str, str]:
        """The JSON and the base64 of the page; `table`, `top` and `levels` are for its token table and colours."""
        tokens = _joined(self._tokens, numpy.int64)
        used, numbers = numpy.unique(
            numpy.concatenate([tokens, numpy.array([row.token for row in table], dtype=numpy.int64)]),
            return_inverse=True,
        )
        texts = [cut(self.vocabulary.texts[number], LONGEST_TOKEN) for number in used]
        wide = numpy.uint16 if len(used) <= 1 << 16 else numpy.uint32
        columns = [
            numbers[: len(tokens)].astype(wide),
            _joined(self._entropies, numpy.uint16),
            _joined(self._surprisals, numpy.uint16),
            numpy.packbits(_joined(self._selected, bool), bitorder="little"),
        ]
        raw = b"".join(column.astype(column.dtype.newbyteorder("<")).tobytes() for column in columns)
        described = {
            "vocabulary": texts,
            "wide": wide is numpy.uint32,
            "tokens": len(tokens),
            "codes": {"lowest": LOWEST, "step": STEP, "infinite": INFINITE},
            "scale": {"top": top, "levels": levels},
            "verdicts": VERDICTS,
            "responses": self._responses(),
            "table": {
                "tokens": numbers[len(tokens) :].tolist(),
                "counts": [row.count for row in table],
                "entropies": [row.mean_entropy for row in table],
                "selected": [row.share_selected for row in table],
                "at_least": at_least,
            },
        }
        return json_block(described), base64.b64encode(raw).decode()

    def _responses(self) -> dict[str, Any]:
        """A column for each fact; texts that repeat are numbers of a list."""
        prompts: dict[tuple[str, str, str], int] = {}
        names: dict[str, dict[str, int]] = {"set": {}, "kind": {}, "finish": {}}

        def numbered(name: str, text: str) -> int:
            return names[name].setdefault(text, len(names[name]))

        rows = [
            {
                "prompt": prompts.setdefault((each.prompt_id, each.prompt, each.answer), len(prompts)),
                "set": numbered("set", each.set),
                "kind": numbered("kind", each.kind),
                "finish": numbered("finish", each.finish_reason),
                "step": each.step,
                "sample": each.sample,
                "reward": _finite(each.reward),
                "verdict": each.verdict,
                "advantage": _finite(each.advantage),
                "reason": cut(each.reason, LONGEST_TEXT),
                "length": each.length,
                "shown": len(tokens),
                "measured": measured,
                "mean": mean,
                "selected": selected,
            }
            for each, tokens, measured, mean, selected in zip(
                self.facts, self._tokens, self.measured, self.means, self.counts_selected, strict=True
            )
        ]
        return {
            "columns": {name: [row[name] for row in rows] for name in rows[0]} if rows else {},
            "prompts": [[cut(prompt, LONGEST_TEXT), cut(answer, LONGEST_TEXT)] for _, prompt, answer in prompts],
            "sets": [visible(name) for name in names["set"]],
            "kinds": list(names["kind"]),
            "finishes": [visible(name) for name in names["finish"]],
        }


def json_block(value: Any) -> str:
    """JSON for a script element: no text in it can end the element, or begin a comment or another one."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _joined(arrays: list[numpy.ndarray], kind: Any) -> numpy.ndarray:
    return numpy.concatenate(arrays) if arrays else numpy.zeros(0, dtype=kind)


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None
