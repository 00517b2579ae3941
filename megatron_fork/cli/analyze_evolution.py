"""`megatron-fork analyze evolution`: the same responses under every checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_fork.cli.analyze_entropy import AsJson, Out, TracePlaces, console_of, table_of
from megatron_fork.cli.analyze_models import Set, quiet_display, traces_to_read
from megatron_fork.cli.guard import Debug, guarded
from megatron_fork.errors import ConfigError
from megatron_fork.files import path_at_home

if TYPE_CHECKING:
    from megatron_fork.analysis import Evolution
    from megatron_fork.run import Display

_BESIDE = 16
"""Columns of the terminal that the percentiles and the edges of the table of changes take."""


def evolution(
    traces: TracePlaces,
    models: Annotated[
        str | None,
        typer.Option(
            help="base, checkpoints and final model in order, with commas: BASE,RUN@step-10,RUN", show_default=False
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(parser=path_at_home, help="folder of a run: its warm start or base, checkpoints and final model"),
    ] = None,
    settings: Set = None,
    out: Out = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Overlap of the selected tokens with base and final model, entropy change and percentiles over checkpoints."""

    def work() -> None:
        display = quiet_display(as_json=as_json)
        if (models is None) == (run is None):
            raise ConfigError(
                "--models and --run: one of them is needed", hint="--run FOLDER, or --models BASE,...,FINAL"
            )
        from megatron_fork import distributed
        from megatron_fork.run import models_of_run

        names = [each.strip() for each in models.split(",")] if models else models_of_run(run or Path())
        if len(names) < 2:
            raise ConfigError(f"{names} is one model", hint="give a base model and a final one at least")
        found = _evolution(traces, names, settings or [], display)
        distributed.finalize()
        if found is None:
            return
        from megatron_fork.analysis import evolution_record, json_text, save_evolution

        if as_json:
            typer.echo(json_text(evolution_record(found)))
        else:
            _print(found)
        if out is not None:
            written = save_evolution(out, found)
            typer.echo(f"wrote {', '.join(path.name for path in written)} to {out}", err=as_json)

    guarded(work, debug=debug)


def _evolution(traces: list[Path], names: list[str], overrides: list[str], display: Display) -> Evolution | None:
    """The stages; None on ranks but the first."""
    from megatron_fork.analysis import Evolution, EvolutionSums
    from megatron_fork.run import (
        config_of,
        entropies_of,
        is_first_rank,
        place_and_checkpoint,
        scorer,
        selected_tokens,
    )

    files = traces_to_read(traces)
    display.say(f"{len(names)} statistics passes over {files.responses:,} responses")
    place, saved = place_and_checkpoint(names[0])
    with scorer(place, display, saved=saved, overrides=overrides, temperature=files.temperature) as scores:

        def under(name: str) -> None:
            place, saved = place_and_checkpoint(name)
            scores.load(config_of(place, overrides, checkpoint=saved).model)
            display.say(f"scoring under {name}")

        base = entropies_of(files, scores)
        under(names[-1])
        final = entropies_of(files, scores)
        sums, config = None, scores.config.selection
        if is_first_rank():
            sums = EvolutionSums(
                base.entropy,
                final.entropy,
                lambda entropy_t: selected_tokens(entropy_t, base.lengths, config),
                config.ratio,
            )
        stages = [sums.stage(_label(names[0]), base.entropy)] if sums else []
        for name in names[1:-1]:
            under(name)
            entropy_t = entropies_of(files, scores).entropy
            stages += [sums.stage(_label(name), entropy_t)] if sums else []
        if not sums:
            return None
        return Evolution([*stages, sums.stage(_label(names[-1]), final.entropy)], len(base.entropy), config.ratio)


def _label(name: str) -> str:
    """What stands after the @, or the folder's name."""
    return name.rpartition("@")[2] if "@" in name else Path(name).name


def _print(found: Evolution) -> None:
    console = console_of()
    lines = [
        [
            stage.name,
            f"{stage.mean:.4f}",
            *(f"{stage.percentiles[percentile]:.4g}" for percentile in (50.0, 80.0, 95.0)),
            f"{100 * stage.overlap_base:.2f} %",
            f"{100 * stage.overlap_final:.2f} %",
        ]
        for stage in found.stages
    ]
    columns = ["model", "mean", "p50", "p80", "p95", "as base", "as final"]
    title = f"entropy of {found.tokens:,} tokens in nats, and overlap of the selected {100 * found.ratio:g} %"
    console.print(table_of(title, columns, lines))
    later = found.stages[1:]
    widest = max(len(stage.name) for stage in found.stages)
    side_by_side = max(1, (console.width - _BESIDE) // (max(widest, len("+0.0000")) + 2))
    for first in range(0, len(later), side_by_side):
        shown = later[first : first + side_by_side]
        change = [
            [f"{5 * number} - {5 * number + 5}", *(f"{stage.change[number]:+.4f}" for stage in shown)]
            for number in range(len(found.stages[0].change))
        ]
        columns = ["percentile", *(stage.name for stage in shown)]
        console.print(table_of("mean change by percentile of base entropy", columns, change))
