"""The order in which things are tried, and what becomes of one that fails: a line, or under a launcher the end.

Under a launcher a rank that failed cannot go on with the others, so the first failure ends all; alone the next is tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PretrainedConfig

from megatron_fork import distributed, models
from megatron_fork.config import RunConfig
from megatron_fork.distributed import ParallelConfig
from megatron_fork.errors import Interrupted, MegatronForkError, PreflightError
from megatron_fork.preflight.disk import disk, scratch
from megatron_fork.preflight.findings import Finding, refused, unchecked
from megatron_fork.preflight.memory import here, memory
from megatron_fork.preflight.prompts import prompts
from megatron_fork.preflight.ranks import ranks as met_ranks
from megatron_fork.preflight.rehearsal import Rehearsal, one_step
from megatron_fork.preflight.scaled import as_recipe, scaled_down
from megatron_fork.preflight.servers import servers, weight_sync
from megatron_fork.recipe import one_line
from megatron_fork.rollout import engine_kind
from megatron_fork.run import Checked

# A model of this size is tried as it is, on any machine; its checkpoint is some 300 MB.
_SMALL_PARAMETERS = 20_000_000
# Of a rank's memory, for weights, gradients and optimizer: the rest is for activations of the short step that is tried.
_FILLED = 0.85

Section = tuple[str, Iterator[Finding]]


@dataclass(frozen=True)
class Preflight:
    """What is tried."""

    dry_run: bool = True
    """A step, an engine and a checkpoint."""
    sync: bool = False
    """Send the recipe's weights to its servers, in place of those that they have."""
    seconds: float = 60.0
    """Patience with a rank or a server that does not answer."""
    debug: bool = False
    """Raise what a part raises, and do not make a line of it."""


def preflight(
    config: RunConfig,
    found: Checked | None,
    options: Preflight,
    *,
    ranks: int,
    bytes_per_rank: float | None,
    hf_config: PretrainedConfig | None,
    missing: str = "",
) -> Iterator[Section]:
    """Sections by their title, each to be read to its end before the next; every rank reads them.

    `found`: of the recipe; None where some part of it, `missing`, was refused: then only what can do without is tried.
    `bytes_per_rank`: on the fullest of `ranks` ranks, before any activation. Both of it and `hf_config` may be known without
    `found`.
    """

    def tried(name: str, findings: Iterator[Finding] | None) -> Section:
        return name, _tried(
            name, iter([unchecked(name, missing)]) if findings is None else findings, debug=options.debug
        )

    yield tried("prompts", None if found is None else prompts(found.source, found.sets))
    yield tried("memory", None if bytes_per_rank is None else memory(config, bytes_per_rank, ranks=ranks))
    yield tried("round trip", met_ranks(seconds=options.seconds))
    kind = engine_kind(config.rollout.engine)
    if kind.has_servers:
        yield tried("servers", None if found is None else servers(config, found, seconds=options.seconds))
    try:
        with scratch(config) as folder:
            yield tried("disk", disk(config, hf_config, folder))
            if found is None or bytes_per_rank is None:
                if options.dry_run:
                    yield tried("one step and a checkpoint", None)
                if options.sync:
                    yield tried("weight sync", None)
                return
            fits_here = bytes_per_rank <= _FILLED * here().bytes and distributed.world_size() == ranks
            if options.dry_run:
                for number, (title, rehearsal, continues) in enumerate(_rehearsals(config, found, fits_here)):
                    yield tried(title, one_step(rehearsal, folder / f"run-{number}", continues=continues))
            if options.sync:
                yield tried("weight sync", _sync(config, found, options, folder / "sync", fits_here))
    except MegatronForkError as error:
        if distributed.is_launched() or isinstance(error, Interrupted):
            raise
        yield "disk", iter([refused("disk", error)])


def _tried(name: str, findings: Iterator[Finding], *, debug: bool) -> Iterator[Finding]:
    try:
        yield from findings
    except Interrupted:
        raise
    except MegatronForkError as error:
        if debug or distributed.is_launched():
            raise
        yield refused(name, error)
    except Exception as error:  # kernels and compilers raise anything, and that is what trying them is for
        if debug:
            raise
        failed = PreflightError(
            f"{name} failed: {type(error).__name__}: {one_line(error)}", hint="doctor --debug shows where"
        )
        if distributed.is_launched():
            raise failed from error
        yield refused(name, failed)


def _rehearsals(config: RunConfig, found: Checked, fits_here: bool) -> Iterator[tuple[str, Rehearsal, bool]]:
    """(title, what to rehearse, whether engine and checkpoint are tried too): at the recipe's size where it fits, and small."""
    world, parameters = distributed.world_size(), models.count_parameters(found.hf_config)
    is_small = parameters <= _SMALL_PARAMETERS
    if torch.cuda.is_available() and fits_here and not is_small:
        yield "one step", Rehearsal(config, found, f"the recipe's {parameters:,} parameters", True), False
    parallel = config.parallel if distributed.is_launched() else _layout_of_one(config, world)
    hf_config = found.hf_config if is_small else scaled_down(found.hf_config, config, parallel)
    count = models.count_parameters(hf_config)
    scale = (
        f"the recipe's {count:,} parameters" if is_small else f"a small {hf_config.model_type}, {count:,} parameters"
    )
    small = as_recipe(config, hf_config, parallel, alone=world == 1)
    yield (
        "one step and a checkpoint",
        Rehearsal(small, replace(found, hf_config=hf_config, contents=None), scale, is_small),
        True,
    )


def _layout_of_one(config: RunConfig, world: int) -> ParallelConfig:
    """The recipe's layout where one rank is enough for it, otherwise that of a single rank."""
    try:
        config.parallel.data(world)
    except MegatronForkError:
        return ParallelConfig()
    return config.parallel


def _sync(config: RunConfig, found: Checked, options: Preflight, folder: Path, fits_here: bool) -> Iterator[Finding]:
    if not engine_kind(config.rollout.engine).has_servers:
        yield Finding("weight sync", f"rollout.engine={config.rollout.engine} has no servers", "", "note")
    elif not fits_here:
        yield Finding(
            "weight sync",
            "not tried: the recipe's model does not fit on the ranks that are here",
            "start doctor --sync on the ranks of the run",
            "fix",
        )
    else:
        yield from weight_sync(Rehearsal(config, found, "the recipe's", True), folder, seconds=options.seconds)
