"""`megatron-fork plan`: how much memory and time a recipe needs, which layouts fit, and how many GPUs it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_fork.config import RunConfig
from megatron_fork.errors import size
from megatron_fork.planning import Estimate, Plan, Question, StageMemory, layout_fields, plan

Lines = list[tuple[str, ...]]


def show_plan(config: RunConfig, question: Question, console: Console, *, as_json: bool) -> None:
    """Print the plan; raises a `MegatronForkError` if the recipe does not fit, after everything has been printed."""
    found = plan(config, question)
    if as_json:
        console.print(json.dumps(as_record(found), indent=2), markup=False, soft_wrap=True)
    else:
        for title, columns, lines in _tables(found):
            _print(title, columns, lines, console)
    found.refuse()


def as_record(found: Plan) -> dict[str, Any]:
    """The plan as JSON: bytes, seconds and counts."""
    own = found.own
    room = own.fleet.room
    return {
        "recipe": found.name,
        "shape": found.shape,
        "parameters": found.parameters,
        "fits": own.fits,
        "usable_bytes": own.usable,
        "longest_sequence": found.longest,
        "largest_micro_batch": found.budget,
        "weight_update_bytes": found.sync,
        "lm_head_of_one_response": found.head,
        "own": _record(own),
        "stages": [
            {
                "stage": stage.stage,
                "peak_bytes": stage.peak,
                "parts": stage.parts,
                "phases": stage.phases,
                "activations_bytes": stage.activations,
                "micro_batches_in_flight": stage.in_flight,
            }
            for stage in own.stages
        ],
        "engine": {
            "engines": own.fleet.engines,
            "gpus_each": room.gpus,
            "weights_bytes": room.weights,
            "cache_bytes": room.cache,
            "bytes_per_token": room.token,
            "tokens": room.tokens,
            "longest_sequences": room.sequences(found.longest),
        },
        "suggested": [_record(each) for each in found.suggested],
        "fewest": _record(found.fewest) if found.fewest else None,
        "balanced": _record(found.balanced) if found.balanced else None,
    }


def _record(each: Estimate) -> dict[str, Any]:
    time = each.time
    return {
        "gpus": each.gpus,
        "trainer_ranks": each.ranks,
        "engines": each.fleet.engines,
        "layout": layout_fields(each.config.parallel),
        "peak_bytes": each.peak,
        "seconds": {
            "rollout": time.rollout,
            "statistics": time.statistics,
            "update": time.update,
            "weight update": time.sync,
            "step": time.total,
        },
        "assumptions": time.assumptions,
    }


def _tables(found: Plan) -> Iterator[tuple[str, tuple[str, ...], Lines]]:
    own = found.own
    shape = f"shape of {found.shape}, since model.path is not here" if found.shape else "from the recipe's model"
    room, time = own.fleet.room, own.time
    yield (
        f"plan of {found.name}",
        (),
        [
            ("model", f"{found.parameters:,} parameters", shape),
            ("trainer", f"{own.ranks} ranks", _layout(own)),
            (
                "peak",
                f"{size(own.peak)} of {size(own.usable)} usable",
                "fits" if own.peak <= own.usable else "does NOT fit",
            ),
            (
                "micro-batch",
                f"up to {found.budget:,} tokens fit" if found.budget else "not even the longest sequence fits",
                f"the longest sequence has {found.longest:,}; policy.tokens_per_micro_batch="
                f"{own.config.policy.tokens_per_micro_batch}",
            ),
            (
                "engines",
                f"{own.fleet.engines} of {room.gpus} GPUs",
                f"{size(room.weights)} of weights; room for {room.tokens:,} tokens, {room.sequences(found.longest)} sequences "
                f"of {found.longest:,}"
                if room.fits
                else f"the weights, {size(room.weights)}, do NOT fit",
            ),
            ("weight update", f"{size(found.sync)}", f"{time.sync:.1f} s"),
        ],
    )
    yield "memory by pipeline stage", ("stage", "peak", "parts"), [_stage(stage) for stage in own.stages]
    head = found.head
    yield (
        f"LM head of one response of {own.config.rollout.max_response_tokens:,} tokens, on one rank",
        (),
        [
            (f"the {head['fraction selected']:.0%} that are trained", size(head["selected rows"]), "as here"),
            ("all rows, in chunks", size(head["all rows"]), ""),
            ("all logits at once", size(head["all logits at once"]), "logits, float32 logits, their gradient"),
            (
                "products of the update",
                f"{head['fraction of products']:.1%} are the head's over all rows",
                f"{1 - head['fraction selected']:.0%} of these are saved",
            ),
        ],
    )
    yield "a step", ("rollout", "statistics", "update", "weight update", "all"), [_seconds(own)]
    yield "assumed", (), [(line,) for line in time.assumptions]
    columns = ("GPUs", "trainer", "engines", "peak", "rollout", "training", "layout")
    yield "layouts that fit, the fastest training first", columns, [_suggested(each) for each in found.suggested]
    if found.fewest is not None:
        lines = [("fewest that fit", *_suggested(found.fewest))]
        if found.balanced is not None:
            lines.append(("drawing as fast as training", *_suggested(found.balanced)))
        yield "how many GPUs", ("", *columns), lines


def _layout(each: Estimate) -> str:
    return " ".join(layout_fields(each.config.parallel)) or "one rank a replica"


def _stage(stage: StageMemory) -> tuple[str, ...]:
    parts = ", ".join(f"{name} {size(count)}" for name, count in stage.parts.items() if count)
    return str(stage.stage), size(stage.peak), f"{parts} (activations {size(stage.activations)})"


def _seconds(each: Estimate) -> tuple[str, ...]:
    time = each.time
    return tuple(f"{seconds:,.0f} s" for seconds in (time.rollout, time.statistics, time.update, time.sync, time.total))


def _suggested(each: Estimate) -> tuple[str, ...]:
    engines = f"{each.fleet.engines} x {each.fleet.room.gpus}"
    times = f"{each.time.rollout:,.0f} s", f"{each.time.training:,.0f} s"
    return str(each.gpus), str(each.ranks), engines, size(each.peak), *times, _layout(each)


def _print(title: str, columns: tuple[str, ...], lines: Lines, console: Console) -> None:
    """A table on a terminal, lines in a log."""
    if not lines:
        return
    if not console.is_terminal:
        console.print(f"{title}:", markup=False, soft_wrap=True)
        for line in lines:
            words = [f"{column} {word}".strip() for column, word in zip(columns or [""] * len(line), line, strict=True)]
            console.print("  " + ", ".join(word for word in words if word), markup=False, soft_wrap=True)
        return
    table = Table(title=title, title_justify="left", show_header=bool(columns))
    for column in columns or [""] * len(lines[0]):
        table.add_column(column)
    for line in lines:
        table.add_row(*line)
    console.print(table)
