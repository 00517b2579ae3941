"""What `doctor` finds of a recipe: the checks of `train` in their order, each by itself, so that one that fails is not the end.

What needs something that is missing is not checked, and has a line that says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from megatron_fork import conversion, distributed, models, planning
from megatron_fork.cluster import check_images, image_files
from megatron_fork.config import RunConfig
from megatron_fork.data import GENERATED
from megatron_fork.errors import MegatronForkError, masked, size
from megatron_fork.preflight import Finding, refused, unchecked
from megatron_fork.rollout import ends_in_words, engine_kind, server_states
from megatron_fork.run import (
    Checked,
    check_machine,
    check_settings,
    matching_ends,
    matching_model,
    matching_prompts,
    matching_sets,
)

Section = tuple[str, Iterator[Finding]]


@dataclass
class Known:
    """What was found of a recipe so far."""

    hf_config: PretrainedConfig | None = None
    """The model's, or the published one of its name where the model's folder is not here."""
    is_published: bool = False
    """Whether it is the published one."""
    contents: conversion.Contents | None = None
    """Of the model's folder; None if the weights are random."""
    data: int = 0
    """Data ranks; 0 where the layout does not fit."""
    bytes_per_rank: float | None = None
    """On the fullest rank before any activation."""
    checked: Checked | None = None
    """All of it, where nothing was refused."""
    missing: str = ""
    """The part that was refused last, which others may need."""


def recipe_sections(config: RunConfig, world: int, known: Known) -> Iterator[Section]:
    """Sections by their title, each to be read to its end, or its error, before the next; `known` takes what they find."""
    yield "machine of the recipe", _silent(check_machine, config)
    yield "settings", _silent(check_settings, config, ranks=world, servers_come=config.cluster.servers > 0)
    yield "model", _model(config, known)
    if known.hf_config is None:
        yield "published model", _published(config, known)
    yield "layout", _layout(config, world, known)
    yield "prompts of the recipe", _prompts(config, known)
    yield "containers", _containers(config)
    yield "servers of the recipe", _servers(config, known)
    yield "a step", _batches(config, known)
    yield "memory of the recipe", _bytes(config, world, known)


def _silent(check: Callable[..., None], config: RunConfig, **options: Any) -> Iterator[Finding]:
    """A check that says nothing where all is well."""
    check(config, **options)
    yield from ()


def _model(config: RunConfig, known: Known) -> Iterator[Finding]:
    try:
        known.hf_config, known.contents = matching_model(config)
    except MegatronForkError:
        with suppress(MegatronForkError):  # its shape is known although its weights or layout do not do
            known.hf_config = conversion.resolve_config(config.model)
        raise
    parameters = models.count_parameters(known.hf_config)
    yield Finding("model", (known.hf_config.architectures or ["none"])[0], f"{parameters:,} parameters")
    yield _weights(known.contents)


def _published(config: RunConfig, known: Known) -> Iterator[Finding]:
    """Of a model whose folder is not here: enough for its layout and memory."""
    name = planning.shape_name(config.model)
    if name is None:
        yield unchecked("layout and memory", known.missing)
        return
    known.hf_config, known.is_published = planning.model_shape(config), True
    parameters = models.count_parameters(known.hf_config)
    yield Finding("model", f"computed for the published {name}", f"{parameters:,} parameters", "note")


def _layout(config: RunConfig, world: int, known: Known) -> Iterator[Finding]:
    parallel = config.parallel
    data = parallel.data(world)
    if known.hf_config is not None:
        models.check_divides(known.hf_config, parallel)
    known.data = data
    yield Finding(
        "layout",
        f"{data} data ranks of {parallel.tensor * parallel.pipeline * parallel.context}",
        f"needs a multiple of {planning.replica_ranks(config)} ranks; computed for {world}",
    )


def _prompts(config: RunConfig, known: Known) -> Iterator[Finding]:
    if known.hf_config is None or known.is_published:
        yield unchecked("prompts and tokenizer", known.missing)
        if config.data.source not in GENERATED and not Path(config.data.source).exists():
            yield Finding("data.source", f"{config.data.source} is not here either", "docs/data.md has commands", "fix")
        return
    hf_config = known.hf_config
    source = matching_prompts(config, hf_config)
    response = config.rollout.max_response_tokens
    yield Finding(
        "longest sequence",
        f"{source.longest_prompt} + {response} = {source.longest_prompt + response} tokens",
        f"prompt + response; the model has {models.longest_sequence(hf_config)} positions",
    )
    sets = matching_sets(config, hf_config, source.tokenizer)
    ends = matching_ends(config, hf_config, source.tokenizer)
    yield Finding("responses end at", ends_in_words(ends, source.tokenizer))
    if not known.missing:
        known.checked = Checked(hf_config, known.contents, source, ends, sets)


def _containers(config: RunConfig) -> Iterator[Finding]:
    """On the machine that submits; inside a container its own file may not be seen."""
    slurm = config.cluster.slurm
    images = image_files(slurm)
    if distributed.is_launched() or not images:
        return
    try:
        check_images(slurm)
    except MegatronForkError as error:
        yield refused("container", error)
        return
    yield Finding("container", ", ".join(sorted(set(images.values()))), f"for {slurm.container_kind}; not started")


def _servers(config: RunConfig, known: Known) -> Iterator[Finding]:
    """Every server's state. One that does not answer yet is not an error, since a run waits for it."""
    cluster = config.cluster
    if known.missing and config.rollout.servers:  # none is asked for a recipe that would not start
        yield unchecked("servers", known.missing)
        return
    if engine_kind(config.rollout.engine).has_servers and not config.rollout.servers and cluster.servers:
        what = f"{cluster.servers} of {cluster.engine_tensor} GPUs, on {cluster.engine_nodes} nodes"
        yield Finding("servers", what, "none is named: a job of `megatron-fork launch` starts them", "note")
    for url, state in server_states(config.rollout.servers).items():
        waits = f"a run waits up to {config.rollout.remote.patience_seconds:g} seconds for it"
        yield Finding(f"server {masked(url)}", state, *(("", "ok") if state == "healthy" else (waits, "note")))


def _weights(found: conversion.Contents | None) -> Finding:
    if found is None:
        return Finding("weights", "random", "model.hf_config has no weights")
    files = "1 file" if found.files == 1 else f"{found.files} files"
    held = f"{len(found.names):,} tensors in {files}, {size(found.bytes)}"
    return Finding("weights", held, "names, shapes and dtypes match the model")


def _batches(config: RunConfig, known: Known) -> Iterator[Finding]:
    train, samples = config.train, config.rollout.samples
    responses, of_update = train.prompts_per_step * samples, train.prompts_per_mini_batch * samples
    updates = math.ceil(train.prompts_per_step / train.prompts_per_mini_batch)
    yield Finding(
        "a step", f"{train.prompts_per_step} prompts x {samples} = {responses} responses", f"{updates} updates"
    )
    if not known.data:
        yield unchecked("an update", known.missing)
        return
    yield Finding(
        "an update",
        f"{of_update} responses, {of_update / known.data:g} per data rank",
        "fewer responses than data ranks: some have nothing to do" if of_update < known.data else "",
    )


def _bytes(config: RunConfig, ranks: int, known: Known) -> Iterator[Finding]:
    """Memory of the fullest rank before any activation, for every network of the recipe."""
    hf_config = known.hf_config
    if hf_config is None or not known.data:
        yield unchecked("before activations", known.missing)
        return
    stages = planning.held_by_stage(config, models.ParameterCounts.of(hf_config), ranks)
    fullest = max(stages, key=lambda stage: sum(held.total for held in stage.values()))
    for name, held in fullest.items():
        parts = [part for part in (held.weights, held.gradients, held.optimizer) if part]
        yield Finding(
            name,
            f"{' + '.join(size(part) for part in parts)} per rank",
            ("weights, gradients, optimizer" if len(parts) > 1 else "weights")
            + (f"; {size(held.on_host)} on the host" if held.on_host else ""),
        )
    share = planning.engine_weights(config, models.count_parameters(hf_config))
    kind = engine_kind(config.rollout.engine)
    held_there = f"{size(share)} per rank" if kind.holds_weights else "nothing on the trainer's ranks"
    yield Finding(kind.title, held_there, kind.memory)
    total = share + sum(held.total for held in fullest.values())
    known.bytes_per_rank = total
    yield Finding("before activations", f"{size(total)} per rank", "in the fullest pipeline stage")
