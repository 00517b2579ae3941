"""What every command needs before it starts: checked settings, the layout, the prompts, the run folder.

Whatever can be refused is refused here, before a model is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from transformers import PretrainedConfig

from megatron_fork import checkpoint, conversion, distributed
from megatron_fork.config import RunConfig, to_yaml
from megatron_fork.data import PromptSource
from megatron_fork.distributed import Layout, collectives, parallel_layout
from megatron_fork.errors import Interrupted, MegatronForkError, Preempted, StopRequested, command
from megatron_fork.files import as_file_name
from megatron_fork.rollout import ends_in_words
from megatron_fork.run.checks import Checked, check
from megatron_fork.run.claim import check_claim, claim, new_folder
from megatron_fork.run.console import Display
from megatron_fork.run.ending import end_with, users_errors
from megatron_fork.run.folder import RunFolder
from megatron_fork.run.identity import fingerprint, former_fingerprints
from megatron_fork.run.interruption import StoppedAtOnce, StopRequest
from megatron_fork.run.metric_names import PeerNames
from megatron_fork.run.prompt_sets import LoadedSet
from megatron_fork.run.provenance import as_comments, provenance

# What a resumed run may change without becoming another run.
_MAY_CHANGE = (
    *("run.", "parallel.", "cluster.", "train.steps", "train.max_skipped_updates", "rewards.workers"),
    *(
        "rewards.failure_warning",
        "policy.tokens_per_",
        "rollout.batch_size",
        "rollout.servers",
        "rollout.sync",
        "rollout.remote.",
    ),
    *("rollout.colocated.", "rollout.probe_"),
)


@dataclass(frozen=True)
class RunContext:
    """The surroundings of one run on this rank."""

    config: RunConfig
    layout: Layout
    hf_config: PretrainedConfig
    source: PromptSource
    folder: RunFolder
    display: Display
    stop: StopRequest
    stop_tokens: tuple[int, ...]
    """Any of them ends a response; the tokenizer's own comes first."""
    sets: tuple[LoadedSet, ...]
    """The prompt sets that are evaluated beside the held-out prompts."""
    model_files: conversion.ModelFiles
    """The files that go beside the weights that the run writes."""
    identity: str
    """A fingerprint of the settings that determine the run; a resumed run may change the others."""
    formerly: tuple[str, ...]
    """The fingerprints that earlier versions gave the same settings."""
    checkpoints: checkpoint.Checkpoints

    def asked_to_stop(self) -> bool:
        """Whether any rank was asked to stop; every rank must call it."""
        return self.stop.agreed(self.layout.world)

    def stop_point(self) -> None:
        """Raise `StopRequested` on every rank if any was asked to stop; every rank must call it."""
        if self.asked_to_stop():
            raise StopRequested

    def interrupted(self, what: str) -> Interrupted:
        """The error to end with once the state is saved; a scheduler's request has its own exit code."""
        kind = Interrupted if self.stop.by_user else Preempted
        return kind(
            f"{what}; the state is saved",
            hint=f"resume with {command('megatron-fork', 'train', self.folder.path / 'resolved.yaml')}",
        )

    @property
    def warm_start(self) -> Path:
        """The model folder that supervised fine-tuning leaves."""
        return self.folder.path / "warm_start"


@contextmanager
def prepare(config: RunConfig, display: Display, *, found: Checked | None = None) -> Iterator[RunContext]:
    """Connect the ranks, check `config`, open the run folder; close everything at the end.

    Ranks connect first, so that all hear of one that alone fails the checks, because its machine differs. `found`: what
    `check` has found before, for a caller that has it.
    """
    distributed.initialize()
    with distributed.watching_ranks(config.run.rank_timeout_seconds, end_with) as watch, users_errors():
        checked = found or check(config, ranks=distributed.world_size())
        with (
            StopRequest() as stop,  # around the rest: a launcher's signal must not cut short what a rank has to say
            parallel_layout(config.parallel) as layout,
            watch.reporting(),
            users_errors(),
            _stopping(stop),
            closing(_open_folder(config, layout, display)) as folder,
        ):
            yield _context(config, checked, layout, folder, display, stop)


def _context(
    config: RunConfig,
    checked: Checked,
    layout: Layout,
    folder: RunFolder,
    display: Display,
    stop: StopRequest,
) -> RunContext:
    hf_config, source, stop_tokens = checked.hf_config, checked.source, checked.stop_tokens
    model_files = conversion.ModelFiles.of(config.model, hf_config, source.tokenizer)
    display.say(f"data {config.data.source}: {source.counts}, {len(source.held_out):,} held out")
    for each in checked.sets:
        display.say(
            f"{each.name} {each.chosen.data.source}: {len(each.source.held_out):,} prompts x {each.chosen.samples}"
        )
    display.say(f"responses end at {ends_in_words(stop_tokens, source.tokenizer)}")
    identity = fingerprint(config, leave_out=_MAY_CHANGE)
    formerly = former_fingerprints(config, leave_out=_MAY_CHANGE)
    checkpoints = checkpoint.Checkpoints(
        folder.path / "checkpoints",
        run=identity,
        formerly=formerly,
        keep=config.run.keep_checkpoints,
        keep_every=config.run.keep_every,
        write_model_files=model_files.write,
        say=display.say,
    )
    return RunContext(
        config,
        layout,
        hf_config,
        source,
        folder,
        display,
        stop,
        stop_tokens,
        checked.sets,
        model_files,
        identity,
        formerly,
        checkpoints,
    )


@contextmanager
def _stopping(stop: StopRequest) -> Iterator[None]:
    """A signal ends the run at once, until a caller that has something to save uses `stop.remembered`."""
    try:
        with stop.at_once():
            yield
    except (StoppedAtOnce, Exception) as error:
        if isinstance(error, Interrupted) or not (stop.has_raised or isinstance(error, StopRequested)):
            raise
        kind = Interrupted if stop.by_user else Preempted
        raise kind(
            "stopped where nothing had to be saved",
            hint="start it again with the same run.folder: it continues from there",
        ) from error


def check_folder(config: RunConfig) -> None:
    """Raise a `RunFolderError` where `prepare` would not get the run's folder, which stays as it is."""
    if config.run.folder:
        check_claim(Path(config.run.folder), config, may_change=_MAY_CHANGE)


def _open_folder(config: RunConfig, layout: Layout, display: Display) -> RunFolder:
    """The first rank chooses and claims the folder for all; if that fails, every rank raises the same error."""
    first = distributed.rank() == 0
    path, lock, refused = Path(config.run.folder or "runs"), None, None
    try:
        if first:
            by_time = Path("runs") / f"{as_file_name(config.run.name)}-{datetime.now():%Y%m%d-%H%M%S}"
            path = path if config.run.folder else new_folder(by_time)
            lock = claim(path, config, may_change=_MAY_CHANGE, say=display.say)
    except MegatronForkError as error:
        refused = error
    path, refused = collectives.broadcast_object((path, refused), layout.world)
    if refused is not None:
        raise refused
    # Without `overwrite`, since a run is resumed with this file.
    head = as_comments(provenance(str(layout))) if first else ""
    named = replace(config, run=replace(config.run, folder=str(path), overwrite=False))
    return RunFolder(
        path,
        writes=first,
        wandb_project=config.run.wandb,
        resolved=head + to_yaml(named),
        lock=lock,
        peer_names=PeerNames(config.run.metric_aliases, layout.world.size()),
        tensorboard=config.run.tensorboard,
        prometheus=(config.run.prometheus_host, config.run.prometheus_port) if config.run.prometheus_port else None,
        alerts=config.run.alerts,
        say=display.say,
    )
