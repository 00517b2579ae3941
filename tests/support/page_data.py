"""What a report page holds for its script, read from its text as a reader of the format would."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy


@dataclass(frozen=True)
class ShownResponse:
    """One response of the page; `entropy` and `logprob` in nats, NaN if unknown."""

    facts: dict[str, Any]
    prompt: str
    answer: str
    tokens: list[str]
    entropy: numpy.ndarray
    logprob: numpy.ndarray
    selected: list[bool]


@dataclass(frozen=True)
class PageData:
    described: dict[str, Any]
    responses: list[ShownResponse]

    def table(self) -> list[tuple[str, int, float, float]]:
        """Rows of the token table: text, count, mean entropy, share selected."""
        table, words = self.described["table"], self.described["vocabulary"]
        columns = (table[name] for name in ("tokens", "counts", "entropies", "selected"))
        return [(words[token], *rest) for token, *rest in zip(*columns, strict=True)]


def block(page: str, identifier: str) -> str:
    """The content of one data block."""
    (found,) = re.findall(rf'<script type="[^"]*" id="{identifier}">(.*?)</script>', page, flags=re.DOTALL)
    return found


def page_data(page: str) -> PageData:
    described = json.loads(block(page, "data"))
    raw = base64.b64decode(block(page, "arrays"), validate=True)
    count, width = described["tokens"], 4 if described["wide"] else 2
    assert len(raw) == count * (width + 4) + math.ceil(count / 8)
    numbers = numpy.frombuffer(raw, f"<u{width}", count)
    entropy = nats(numpy.frombuffer(raw, "<u2", count, width * count), described["codes"])
    logprob = -nats(numpy.frombuffer(raw, "<u2", count, (width + 2) * count), described["codes"])
    bits = numpy.frombuffer(raw, numpy.uint8, offset=(width + 4) * count)
    selected = numpy.unpackbits(bits, bitorder="little")[:count].astype(bool)
    columns, responses, first = described["responses"]["columns"], [], 0
    for place in range(len(columns.get("shown", []))):
        facts = {name: values[place] for name, values in columns.items()}
        tokens = slice(first, first + facts["shown"])
        first = tokens.stop
        responses.append(
            ShownResponse(
                facts=facts,
                prompt=described["responses"]["prompts"][facts["prompt"]][0],
                answer=described["responses"]["prompts"][facts["prompt"]][1],
                tokens=[described["vocabulary"][number] for number in numbers[tokens]],
                entropy=entropy[tokens],
                logprob=logprob[tokens],
                selected=selected[tokens].tolist(),
            )
        )
    assert first == count
    return PageData(described, responses)


def nats(codes: numpy.ndarray, of: dict[str, float]) -> numpy.ndarray:
    steps = codes.astype(float)
    values = of["lowest"] * numpy.exp((steps - 2) * of["step"])
    return numpy.select([steps == 0, steps == 1, steps == of["infinite"]], [numpy.nan, 0.0, numpy.inf], values)
