"""What the LM head should cost on a GPU: its operations and bytes counted, and divided by rates that are stated.

Nothing here is measured but the rate of the matrix products, which is that of the floor on one H200 (8,192 x 4,096 x 151,936,
bfloat16: 13.4 ms for the logits of all tokens, 8.5 ms for the three products of 1,638 rows). An H100 has the same matrix units
and less bandwidth.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

VOCABULARY = 151_936
CHUNK_BYTES = 960 << 20
TILE_COLUMNS = 32_768

# Operations a second of the products alone, as measured: of the statistics pass, and of the update.
STATISTICS_RATE = 2 * 8192 * 4096 * VOCABULARY / 13.4e-3
UPDATE_RATE = 6 * 1638 * 4096 * VOCABULARY / 8.5e-3
# Bytes a second that a sweep reaches, of the peak.
REACHED = 0.85
BANDWIDTH = {"h100": 3.35e12, "h200": 4.8e12}


@dataclass(frozen=True)
class Cost:
    """Of one phase: operations of the products, bytes of sweeps, bytes that products move beyond the floor's."""

    operations: float
    swept: float
    stored: float


def statistics(tokens: int, width: int) -> Cost:
    """The logits of all tokens in float32, read once; the floor's are bfloat16."""
    logits = float(tokens) * VOCABULARY
    return Cost(2 * logits * width, 4 * logits, 2 * logits)


def update(rows: int, width: int, *, into_buffer: bool) -> Cost:
    """Three products for the rows that are trained; d_weight in bfloat16 for autograd, or added to Megatron's float32 buffer.

    The floor writes bfloat16 once: logits, d_weight, and d_hidden for each of its tiles, of which there are as many.
    """
    logits, weight = float(rows) * VOCABULARY, float(VOCABULARY) * width
    chunks = -(-rows * VOCABULARY * 4 // CHUNK_BYTES)
    # The sweep reads 4 bytes, the gradient reads 4 and writes 2.
    swept, stored = 10 * logits, 2 * logits
    d_hidden = 8.0 * rows * width * -(-VOCABULARY // TILE_COLUMNS)
    if chunks == 1:
        of_weight = 8 * weight if into_buffer else 2 * weight
    else:
        # The first chunk writes float32, each later one adds; then the sum is multiplied, and added or rounded.
        of_weight = 4 * weight + 8 * weight * (chunks - 1)
        swept += 12 * weight if into_buffer else 14 * weight
    return Cost(6 * logits * width, swept, stored + d_hidden / 2 + of_weight - 2 * weight)


def milliseconds(cost: Cost, rate: float, gpu: str) -> dict[str, float]:
    """The floor; with all sweeps hidden by products; with nothing hidden, neither sweeps nor what products store more."""
    bandwidth = REACHED * BANDWIDTH[gpu]
    floor = cost.operations / rate * 1e3
    return {
        "floor": floor,
        "best": max(floor, (cost.swept + cost.stored) / bandwidth * 1e3),
        "worst": floor + (cost.swept + cost.stored) / bandwidth * 1e3,
    }


def table(gpu: str) -> list[dict[str, Any]]:
    """A row for each head of Qwen3 (8B and 32B), number of tokens, fraction trained, and place of d_weight."""
    found = []
    for width, tokens, ratio, into_buffer in itertools.product((4096, 5120), (8192, 32_768), (0.2, 1.0), (False, True)):
        rows = round(ratio * tokens)
        costs = {"statistics": statistics(tokens, width), "update": update(rows, width, into_buffer=into_buffer)}
        rates = {"statistics": STATISTICS_RATE, "update": UPDATE_RATE}
        phases = {
            name: {
                "teraflop": cost.operations / 1e12,
                "swept GB": cost.swept / 1e9,
                "stored GB": cost.stored / 1e9,
                "ms": milliseconds(cost, rates[name], gpu),
            }
            for name, cost in costs.items()
        }
        total = {end: sum(phase["ms"][end] for phase in phases.values()) for end in ("floor", "best", "worst")}
        found.append(
            {
                "gpu": gpu,
                "width": width,
                "tokens": tokens,
                "rows": rows,
                "d_weight": "main_grad" if into_buffer else "autograd",
                **phases,
                "over floor": [total[end] / total["floor"] for end in ("best", "worst")],
            }
        )
    return found


def as_markdown(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """The lines of docs/lm-head.md: the case that the other sections measure, in which autograd gets d_weight."""
    yield "| width, tokens, rows trained | TFLOP | swept + stored, GB | floor, ms | H200, ms | x floor | H100, ms | x floor |"
    yield "|---|---|---|---|---|---|---|---|"
    for one, other in zip(found["h200"], found["h100"], strict=True):
        if one["d_weight"] != "autograd":
            continue
        operations = " + ".join(f"{one[phase]['teraflop']:.1f}" for phase in ("statistics", "update"))
        moved = [sum(one[phase][kind] for phase in ("statistics", "update")) for kind in ("swept GB", "stored GB")]
        floor = sum(one[phase]["ms"]["floor"] for phase in ("statistics", "update"))
        cells = []
        for each in (one, other):
            best, worst = each["over floor"]
            cells += [f"{floor * best:.1f} to {floor * worst:.1f}", f"{best:.2f} to {worst:.2f}"]
        case = f"{one['width']:,}, {one['tokens']:,}, {one['rows']:,}"
        yield "| " + " | ".join([case, operations, f"{moved[0]:.0f} + {moved[1]:.0f}", f"{floor:.1f}", *cells]) + " |"
