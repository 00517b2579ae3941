"""What every command needs before it starts: checked settings, the layout, the prompts, the run folder.

Everything that can be refused is refused here, before a model is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from megatron_fork import checkpoint, distributed, models
from megatron_fork.config import RunConfig, fingerprint, to_yaml
from megatron_fork.console import Display
from megatron_fork.data import GENERATED, PromptSource, load_prompts
from megatron_fork.distributed import Layout, collectives, parallel_layout
from megatron_fork.errors import ConfigError, Interrupted, MegatronForkError, ModelError, Preempted
from megatron_fork.interruption import StoppedAtOnce, StopRequest
from megatron_fork.rewards import takes_row
from megatron_fork.rollout import check_colocated, ends_in_words, stop_tokens_of
from megatron_fork.run_claim import claim, new_folder
from megatron_fork.run_folder import RunFolder

# What a resumed run may change without becoming another run.
_MAY_CHANGE = (
    *("run.", "parallel.", "train.steps", "rewards.workers", "rewards.failure_warning", "policy.tokens_per_"),
    *(
        "rollout.batch_size",
        "rollout.servers",
        "rollout.sync",
        "rollout.remote.",
        "rollout.colocated.",
        "rollout.probe_",
    ),
)


@dataclass(frozen=True)
class Workplace:
    """The surroundings of one run on this rank."""

    config: RunConfig
    layout: Layout
    hf_config: PretrainedConfig
    source: PromptSource
    folder: RunFolder
    display: Display
    stop: StopRequest
    stop_tokens: tuple[int, ...]
    """Any of them ends a response, the tokenizer's own first."""
    model_files: checkpoint.ModelFiles
    """What goes beside weights that the run writes."""
    identity: str
    """What the run is determined by, in a few letters; a resumed run may change the rest."""
    checkpoints: checkpoint.Checkpoints

    def asked_to_stop(self) -> bool:
        """Whether any rank was; every rank must ask."""
        return self.stop.agreed(self.layout.world)

    def interrupted(self, what: str) -> Interrupted:
        """The error to end with, once the state is saved: a scheduler's request has an exit code of its own."""
        kind = Interrupted if self.stop.by_user else Preempted
        return kind(
            f"{what}; the state is saved",
            hint=f"resume with `megatron-fork train {self.folder.path / 'resolved.yaml'}`",
        )

    @property
    def warm_start(self) -> Path:
        """The model folder that supervised fine-tuning leaves."""
        return self.folder.path / "warm_start"


@contextmanager
def prepare(config: RunConfig, display: Display) -> Iterator[Workplace]:
    """Check `config`, join the ranks, open the run folder; leave all in order at the end."""
    check_settings(config, ranks=distributed.world_size())
    hf_config, _ = matching_model(config)
    source = matching_prompts(config, hf_config)
    stop_tokens = matching_ends(config, hf_config, source.tokenizer)
    model_files = checkpoint.ModelFiles.of(config.model, hf_config, source.tokenizer)
    distributed.initialize()
    with parallel_layout(config.parallel) as layout, StopRequest() as stop, _stopping(stop):
        folder = _open_folder(config, layout, display)
        display.say(f"data {config.data.source}: {source.counts}, {len(source.held_out):,} held out")
        display.say(f"responses end at {ends_in_words(stop_tokens, source.tokenizer)}")
        try:
            identity = fingerprint(config, leave_out=_MAY_CHANGE)
            checkpoints = checkpoint.Checkpoints(
                folder.path / "checkpoints",
                run=identity,
                keep=config.run.keep_checkpoints,
                keep_every=config.run.keep_every,
                write_model_files=model_files.write,
                say=display.say,
            )
            yield Workplace(
                config,
                layout,
                hf_config,
                source,
                folder,
                display,
                stop,
                stop_tokens,
                model_files,
                identity,
                checkpoints,
            )
        finally:
            folder.close()


@contextmanager
def _stopping(stop: StopRequest) -> Iterator[None]:
    """Until there is something to save a signal ends the run at once; whoever has something says so."""
    try:
        with stop.at_once():
            yield
    except (StoppedAtOnce, Exception) as error:
        if not stop.has_raised or isinstance(error, Interrupted):
            raise
        kind = Interrupted if stop.by_user else Preempted
        raise kind(
            "stopped where nothing had to be saved",
            hint="start it again with the same run.folder: it goes on from there",
        ) from error


def check_settings(config: RunConfig, *, ranks: int) -> None:
    """Raise `ConfigError` for settings of several rooms that do not go together, or not with so many ranks."""
    _check_staleness(config)
    _check_verifier(config)
    if config.rollout.engine == "vllm_colocated":
        check_colocated(config.rollout.colocated, ranks=ranks)


def matching_model(config: RunConfig) -> tuple[PretrainedConfig, checkpoint.Contents | None]:
    """The model's config and what its folder holds; raises where it cannot be built as the recipe asks.

    None where weights are drawn. Of a folder's weights only the headers are read.
    """
    hf_config = checkpoint.resolve_config(config.model)
    models.check_divides(hf_config, config.parallel)
    models.choose_backend(config.compute)
    if config.experts.replay and not models.family_of(hf_config).has_experts:
        raise ModelError("experts.replay=true with a model that has no experts", hint="set experts.replay=false")
    return hf_config, checkpoint.check_initial(config.model, hf_config)


def matching_prompts(config: RunConfig, hf_config: PretrainedConfig) -> PromptSource:
    """The prompts of a recipe; raises where their tokenizer, or the sequences they lead to, do not fit the model."""
    source = load_prompts(config.data, _tokenizer(config.model), with_rows=takes_row(config.rewards.kind))
    if len(source.tokenizer) > hf_config.vocab_size:
        raise ModelError(
            f"the tokenizer has {len(source.tokenizer)} tokens, the model's vocab_size is {hf_config.vocab_size}",
            hint=f"set model.hf_config.vocab_size to {len(source.tokenizer)} or more",
        )
    room = models.longest_sequence(hf_config)
    if source.longest_prompt + config.rollout.max_response_tokens > room:
        raise ModelError(
            f"the longest prompt has {source.longest_prompt} tokens, which with rollout.max_response_tokens="
            f"{config.rollout.max_response_tokens} is more than the model's max_position_embeddings={room}",
            hint=f"lower rollout.max_response_tokens to {max(0, room - source.longest_prompt)} or less, or add "
            "rope_parameters of rope_type yarn to config.json",
        )
    return source


def matching_ends(
    config: RunConfig, hf_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """The tokens that end a response, from every place that names one; raises where one is no token of the model.

    A config that names no end gets the tokenizer's: it is written beside the trained weights.
    """
    if tokenizer.eos_token_id is None and config.sft.steps:
        raise ModelError(
            f"sft.steps={config.sft.steps}, but the tokenizer has no eos_token, with which demonstrations end",
            hint="name it in tokenizer_config.json",
        )
    if hf_config.eos_token_id is None:
        hf_config.eos_token_id = tokenizer.eos_token_id
    named = {
        "eos_token_id of the tokenizer": tokenizer.eos_token_id,
        **checkpoint.written_ends(config.model),
        "rollout.stop_tokens": config.rollout.stop_tokens,
    }
    return stop_tokens_of(named, hf_config.vocab_size)


def _check_staleness(config: RunConfig) -> None:
    stale = config.rollout.max_staleness
    if stale and config.objective.correction == "none":
        raise ConfigError(
            f"rollout.max_staleness={stale} with objective.correction=none takes tokens of older weights for the policy's own",
            hint="set objective.correction=tis",
        )
    if stale and config.experts.replay:
        raise ConfigError(
            f"rollout.max_staleness={stale} with experts.replay=true, which knows nothing of responses that go on later",
            hint="set experts.replay=false",
        )


def _check_verifier(config: RunConfig) -> None:
    """A generated task has the verifier of its name, or one of the user's own."""
    task, kind = config.data.source, config.rewards.kind
    fits = kind == task if task in GENERATED else kind not in GENERATED
    if not fits and ":" not in kind:
        hint = f"set rewards.kind={task}" if task in GENERATED else "set rewards.kind=math, or module:function"
        raise ConfigError(f"rewards.kind={kind} with data.source={task}", hint=hint)
    if kind == "reasoning_gym" and config.rewards.workers == 0:
        raise ConfigError(
            "rewards.kind=reasoning_gym with rewards.workers=0", hint="its tasks are made in workers only"
        )


def _tokenizer(source: models.Config) -> PreTrainedTokenizerBase | None:
    if not source.path:
        return None
    try:
        return AutoTokenizer.from_pretrained(source.path, trust_remote_code=False)
    except Exception as error:  # tokenizers raise this very class
        raise ModelError(
            f"model.path={source.path} has no readable tokenizer: {models.shown(error) or type(error).__name__}",
            hint="copy the model's tokenizer files into the folder",
        ) from error


def _open_folder(config: RunConfig, layout: Layout, display: Display) -> RunFolder:
    """The first rank chooses the folder for all and claims it; where it may not be had, every rank learns why."""
    first = distributed.rank() == 0
    path, lock, refused = Path(config.run.folder or "runs"), None, None
    try:
        if first:
            by_time = Path("runs") / f"{config.run.name}-{datetime.now():%Y%m%d-%H%M%S}"
            path = path if config.run.folder else new_folder(by_time)
            lock = claim(path, config, may_change=_MAY_CHANGE, say=display.say)
    except MegatronForkError as error:
        refused = error
    path, refused = collectives.broadcast_object((path, refused), layout.world)
    if refused is not None:
        raise refused
    # Without `overwrite`: this file is what a run is resumed by.
    named = replace(config, run=replace(config.run, folder=str(path), overwrite=False))
    return RunFolder(path, writes=first, wandb_project=config.run.wandb, resolved=to_yaml(named), lock=lock)
