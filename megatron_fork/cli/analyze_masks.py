"""`megatron-fork analyze compare-masks`: two selection settings on the same mini-batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_fork.cli.analyze_entropy import AsJson, Out, TracePlaces, console_of, table_of
from megatron_fork.cli.analyze_models import Model, Set, quiet_display, traces_to_read
from megatron_fork.cli.guard import Debug, guarded
from megatron_fork.errors import ConfigError

if TYPE_CHECKING:
    from megatron_fork.analysis import MaskComparison
    from megatron_fork.selection import SelectionConfig

_COLOURS = {"a": "bold dark_orange", "b": "bold dodger_blue1", "ab": "bold", "": ""}


def compare_masks(
    traces: TracePlaces,
    model: Model,
    a: Annotated[str, typer.Option(help="first selection: selection.scope=minibatch selection.rule=exact_k")] = "",
    b: Annotated[str, typer.Option(help="second selection, as the first")] = "",
    old: Annotated[
        str | None,
        typer.Option(help="model before the step's updates, for selection.entropy_policy=old", show_default=False),
    ] = None,
    responses: Annotated[int, typer.Option(help="responses of the mini-batch, from the first on", min=1)] = 128,
    gradient: Annotated[bool, typer.Option(help="also the cosine of both gradients: two backward passes")] = True,
    settings: Set = None,
    out: Out = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Which tokens two selections differ in, shown in the text, and the cosine of their gradients. Also under torchrun."""

    def work() -> None:
        display = quiet_display(as_json=as_json)
        from dataclasses import asdict, replace

        from megatron_fork import distributed
        from megatron_fork.analysis import compared, comparison_record, json_text, save_record
        from megatron_fork.run import config_of, model_context, place_and_checkpoint, two_selections

        files = traces_to_read(traces)
        place, saved = place_and_checkpoint(model)
        words = [f"rollout.temperature={files.temperature}", *(settings or [])]

        def selection_of(text: str, name: str) -> SelectionConfig:
            own = text.split()
            if wrong := [word for word in own if not word.startswith("selection.")]:
                raise ConfigError(
                    f"--{name}={text}: {wrong[0]} is no selection.* field", hint="give others with --setting"
                )
            return config_of(place, [*words, *own], checkpoint=saved).selection

        both = selection_of(a, "a"), selection_of(b, "b")
        config = config_of(place, words, checkpoint=saved)
        old_place, old_saved = place_and_checkpoint(old) if old else (place, saved)
        old_model = config_of(old_place, words, checkpoint=old_saved).model if old else None
        count = min(responses, files.responses)
        passes = ("2 statistics passes" if old else "1 statistics pass") + (
            " and 2 passes with backward" if gradient else ""
        )
        memory = ", memory of a model in training and one more copy of its gradients" if gradient else ""
        display.say(f"{count:,} responses: {passes}{memory}")
        with model_context(config, display) as context:
            found = two_selections(context, files, both, responses=count, old=old_model, gradients=gradient)
        distributed.finalize()
        if found is None:
            return
        comparison = replace(compared(*found.masks, found.texts), norms=found.norms, cosine=found.cosine)
        record = {"a": asdict(both[0]), "b": asdict(both[1]), **comparison_record(comparison)}
        if as_json:
            typer.echo(json_text(record))
        else:
            _print(comparison, (a or "as the model's settings", b or "as the model's settings"))
        if out is not None:
            typer.echo(f"wrote {save_record(out / 'masks.json', record)}", err=as_json)

    guarded(work, debug=debug)


def _print(found: MaskComparison, names: tuple[str, str]) -> None:
    from rich.text import Text

    console = console_of()
    lines = [
        ["tokens", f"{found.tokens:,}"],
        [f"selected by a: {names[0]}", f"{found.selected[0]:,}"],
        [f"selected by b: {names[1]}", f"{found.selected[1]:,}"],
        ["selected by both", f"{found.both:,}"],
        ["share of all tokens that differs", f"{100 * found.differ:.2f} %"],
        ["Jaccard", f"{found.jaccard:.4f}"],
    ]
    if found.norms is not None and found.cosine is not None:
        nothing = "none: there is no gradient where all advantages are 0"
        lines += [
            ["gradient norm of a", f"{found.norms[0]:.4g}"],
            ["gradient norm of b", f"{found.norms[1]:.4g}"],
            ["cosine of the gradients", nothing if math.isnan(found.cosine) else f"{found.cosine:.4f}"],
        ]
    console.print(table_of("two selections", ["", ""], lines))
    for name, only in zip("ab", found.only, strict=True):
        if only:
            console.print(
                table_of(f"tokens that only {name} selects", ["token", "count"], [[t, f"{n:,}"] for t, n in only])
            )
    for example in found.examples:
        shown = Text(f"response {example.response}, from token {example.start}: ")
        for text, mark in zip(example.texts, example.marks, strict=True):
            # Brackets as well as colours: the output may be a file.
            shown.append(f"[{mark}|{text}]" if mark in ("a", "b") else text, style=_COLOURS[mark])
        console.print(shown)
