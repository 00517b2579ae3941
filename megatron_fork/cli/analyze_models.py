"""`megatron-fork analyze` with a model: entropies of given responses, and of traces under other checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_fork.cli.analyze_entropy import TracePlaces, show_entropy
from megatron_fork.cli.evaluate import Served
from megatron_fork.cli.guard import Debug, guarded
from megatron_fork.errors import ConfigError
from megatron_fork.files import path_at_home

if TYPE_CHECKING:
    from megatron_fork.run import Display
    from megatron_fork.traces import TraceFiles

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Hugging Face folder, recipe, or folder of a run, with @step-20, @model or @warm_start for one of its models",
        show_default=False,
    ),
]
OutFile = Annotated[Path, typer.Option("--out", parser=path_at_home, help="trace file to write", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--setting", help="setting of the model: policy.precision=bf16 parallel.tensor=2; may be repeated"),
]


def score_responses(
    model: Path,
    responses: Path,
    *,
    columns: str,
    out: Path | None,
    overrides: list[str],
    as_json: bool,
    minimum_count: int,
    rows: int,
) -> None:
    """Score the responses of a file with a model, write them as traces and show their entropy pattern."""
    display = quiet_display(as_json=as_json)
    from megatron_fork import distributed
    from megatron_fork.data import columns_named
    from megatron_fork.run import is_first_rank, origin_of, score_given, scorer
    from megatron_fork.traces import write_traces

    named = columns_named(columns)
    folder = out or Path(f"{responses.stem}-entropy")
    traces = folder / "traces.parquet"
    with scorer(model, display, overrides=overrides) as scores:
        found = score_given(responses, scores, named)
        if is_first_rank():
            write_traces(traces, found, origin_of(scores, "analyze"))
        for _ in found:
            pass
    distributed.finalize()
    if is_first_rank():
        display.say(f"traces {traces}")
        show_entropy([traces], out=folder, as_json=as_json, minimum_count=minimum_count, rows=rows)


def rescore(
    traces: TracePlaces,
    model: Model,
    out: OutFile,
    settings: Set = None,
    served: Served = None,
    debug: Debug = False,
) -> None:
    """The same responses under another model: one statistics pass, also under torchrun; log-probs alone from servers."""

    def work() -> None:
        display = quiet_display()
        from megatron_fork import distributed
        from megatron_fork.run import (
            ServerReader,
            is_first_rank,
            origin_of,
            place_and_checkpoint,
            rescored,
            scorer,
        )
        from megatron_fork.traces import TraceWriter

        files = traces_to_read(traces)
        if any(out.exists() and out.samefile(file) for file in files.files):
            raise ConfigError(f"--out={out} is one of the traces", hint="write another file")
        place, saved = place_and_checkpoint(model)
        if not files.origin.written_by and not any("rollout.temperature" in each for each in settings or ()):
            display.say(
                "the traces do not name their temperature: 1 is taken; --setting rollout.temperature=T for another"
            )
        if served is not None:
            reader = ServerReader(
                place, display, served=served, saved=saved, overrides=settings or [], temperature=files.temperature
            )
            engine = reader.config.rollout.engine
            display.say(f"log-probs of {served} from {engine} servers for {files.responses:,} responses")
            with TraceWriter(out, origin_of(reader, "analyze rescore")) as writer:
                for part in reader.rescored(files):
                    writer.add_part(part)
            display.say(f"traces {out}, without entropies: {engine} servers report none for given tokens")
            return
        display.say(f"one statistics pass of {model} over {files.responses:,} responses")
        with scorer(place, display, saved=saved, overrides=settings or [], temperature=files.temperature) as scores:
            parts = rescored(files, scores)
            if is_first_rank():
                with TraceWriter(out, origin_of(scores, "analyze rescore")) as writer:
                    for part in parts:
                        writer.add_part(part)
            for _ in parts:
                pass
        distributed.finalize()
        display.say(f"traces {out}")

    guarded(work, debug=debug)


def traces_to_read(places: Sequence[Path]) -> TraceFiles:
    """The traces at `places`, for a model to read; says where nothing tells whether their tokens are the model's."""
    from megatron_fork.run import is_first_rank
    from megatron_fork.traces import open_traces

    files = open_traces(*places)
    if not files.origin.tokenizer and is_first_rank():
        line = "the traces do not name their tokenizer: whether the model has the same tokens cannot be checked"
        typer.echo(line, err=True)  # also where the output is one JSON text
    return files


def quiet_display(*, as_json: bool = False) -> Display:
    """What the first rank says; with `as_json` nothing, since the output is one JSON text."""
    from megatron_fork.run import Display, is_first_rank, quiet_libraries

    quiet_libraries()
    return Display(speaks=is_first_rank() and not as_json)
