"""Every check of a recipe that needs no allocated model, for `train` and `doctor` alike."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from megatron_fork import conversion, distributed, models, objective, selection
from megatron_fork.config import RunConfig
from megatron_fork.data import GENERATED, PromptSource, load_prompts
from megatron_fork.errors import ConfigError, ModelError, RunFolderError, way_out
from megatron_fork.policy import OptimizerConfig, check_offload
from megatron_fork.rewards import check_verifier, takes_row
from megatron_fork.rollout import check_engine, stop_tokens_of
from megatron_fork.run.prometheus import check_port
from megatron_fork.run.prompt_checks import check_lengths, check_verifier_fits
from megatron_fork.run.prompt_sets import LoadedSet, matching_sets


@dataclass(frozen=True)
class Checked:
    """What a recipe names, found and checked."""

    hf_config: PretrainedConfig
    contents: conversion.Contents | None
    """Of the model's folder; None if the weights are random."""
    source: PromptSource
    stop_tokens: tuple[int, ...]
    """Any of them ends a response; the tokenizer's own comes first."""
    sets: tuple[LoadedSet, ...]
    """The prompt sets that are evaluated beside the held-out prompts."""


def check(config: RunConfig, *, ranks: int, servers_come: bool = False) -> Checked:
    """Find what `config` names; raises a `MegatronForkError` for the first thing that would fail on `ranks` ranks here.

    `servers_come`: a job will start the servers of the recipe and name them.
    """
    check_machine(config)
    check_settings(config, ranks=ranks, servers_come=servers_come)
    hf_config, contents = matching_model(config)
    place = distributed.launch()
    is_job = place is not None and place.launcher == "srun" and ranks == config.cluster.ranks
    config.parallel.data(ranks, config.cluster if is_job else None)
    source = matching_prompts(config, hf_config)
    sets = matching_sets(config, hf_config, source.tokenizer)
    return Checked(hf_config, contents, source, matching_ends(config, hf_config, source.tokenizer), sets)


def check_settings(config: RunConfig, *, ranks: int, servers_come: bool = False) -> None:
    """Raise `ConfigError` for settings that do not fit each other or the number of ranks."""
    stale = config.rollout.max_staleness
    if stale and config.objective.correction == "none":
        raise ConfigError(
            f"rollout.max_staleness={stale} with objective.correction=none would treat older weights' tokens as the policy's",
            hint="set objective.correction=tis",
        )
    if stale and config.experts.replay:
        raise ConfigError(
            f"rollout.max_staleness={stale} with experts.replay=true, which cannot record responses that continue later",
            hint="set experts.replay=false",
        )
    if config.train.steps and config.rollout.samples < 2 and config.objective.advantage != "gae":
        raise ConfigError(
            f"rollout.samples=1 with objective.advantage={config.objective.advantage}, which compares the responses to a "
            "prompt: every advantage would be 0",
            hint="draw at least 2 samples, say 16, or set objective.advantage=gae",
        )
    for field, optimizer in trained_optimizers(config).items():
        check_offload(optimizer, config.policy.dtype, field=field)
    check_verifier_fits(config.rewards, config.data.source)
    selection.token_choice(config.selection.tokens)
    _check_weights(config)
    check_engine(config.rollout, ranks=ranks, replays_experts=config.experts.replay, servers_come=servers_come)


def _check_weights(config: RunConfig) -> None:
    """Raise `ConfigError` where a loss and a weighting of the chosen tokens do not fit each other, or one is unknown."""
    loss = objective.loss_named(config.objective.loss)
    weightings = {name: selection.weighting_named(name) for name in config.selection.weights}
    if weightings and loss.trains == "candidates":
        raise ConfigError(
            f"selection.weights=[{', '.join(weightings)}] with objective.loss={config.objective.loss}, which trains all "
            "candidates alike: the weights of the selected tokens would do nothing",
            hint="set selection.weights=[], or objective.loss=ppo",
        )
    sampling = [name for name, weighting in weightings.items() if weighting.samples]
    if sampling and loss.whole_responses:
        raise ConfigError(
            f"selection.weights={sampling[0]} leaves tokens out by chance, objective.loss={config.objective.loss} needs "
            "all trained tokens of a response: the gradient would be biased",
            hint=f"set objective.loss=ppo, or leave {sampling[0]} out of selection.weights",
        )


def check_machine(config: RunConfig) -> None:
    """Raise an error if the recipe needs a package, a GPU or a folder that this machine does not have."""
    on_gpu = torch.cuda.is_available()
    check_kernels(config)
    for field, optimizer in trained_optimizers(config).items():
        if optimizer.offload and not on_gpu:
            raise ConfigError(
                f"{field}.offload={optimizer.offload} needs a GPU", hint="there is no device memory to save: set 0"
            )
    if config.rollout.servers and config.rollout.sync == "nccl" and not on_gpu:
        raise ConfigError(
            "rollout.sync=nccl needs a GPU", hint="set rollout.sync=gloo, or disk if all machines share a file system"
        )
    if config.run.wandb and importlib.util.find_spec("wandb") is None:
        raise RunFolderError(f"run.wandb={config.run.wandb}, but wandb is not installed", hint="pip install wandb")
    if config.run.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise RunFolderError("run.tensorboard=true, but tensorboard is not installed", hint="pip install tensorboard")
    if config.run.prometheus_port and distributed.rank() == 0:
        check_port(config.run.prometheus_host, config.run.prometheus_port)
    check_verifier(config.rewards)
    if config.run.folder and Path(config.run.folder).is_file():
        raise RunFolderError(
            f"run.folder={config.run.folder} is a file", hint="name a folder; it is created if it does not exist"
        )
    if config.run.folder:
        _check_place(Path(config.run.folder))


def _check_place(folder: Path) -> None:
    """Raise `RunFolderError` where a run's folder could not be made, or nothing written there."""
    place = next(each for each in (folder, *folder.parents) if each.exists())
    if not place.is_dir():
        raise RunFolderError(
            f"run.folder={folder} cannot be written: {place} is a file", hint="choose another run.folder"
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise RunFolderError(
            f"run.folder={folder} cannot be written: this user may not write in {place}",
            hint="choose another run.folder, where this user may write",
        )
    try:  # rights are not all: nobody makes a folder in /proc, or on a full disk
        tempfile.TemporaryDirectory(prefix=".megatron-fork-", dir=place).cleanup()
    except OSError as error:
        raise RunFolderError(
            f"run.folder={folder} cannot be written: no folder can be made in {place}: {error.strerror or error}",
            hint=way_out(error, elsewhere="run.folder"),
        ) from error


def check_kernels(config: RunConfig) -> None:
    """Raise `ConfigError` if the LM head or the layers are set to run on kernels that this machine does not have."""
    layers = models.choose_backend(config.compute, config.policy.dtype)
    models.check_kernels_are_local(config.compute, layers)
    if layers.backend == "local":
        models.choose_attention(config.compute, config.policy.dtype)
        models.choose_elementwise(config.compute)
    if config.vocab_parallel.kernels != "triton":
        return
    if importlib.util.find_spec("triton") is None:
        raise ConfigError("vocab_parallel.kernels=triton, but Triton is not installed", hint="pip install triton")
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError("vocab_parallel.kernels=triton needs a GPU", hint="set vocab_parallel.kernels=auto")


def trained_optimizers(config: RunConfig) -> dict[str, OptimizerConfig]:
    """The settings of every optimizer that the run uses, by their field."""
    found = {"optimizer": config.optimizer}
    if config.objective.advantage == "gae":
        found["critic.optimizer"] = config.critic.optimizer
    if config.sft.steps:
        found["sft.optimizer"] = config.sft.optimizer
    return found


def matching_model(config: RunConfig) -> tuple[PretrainedConfig, conversion.Contents | None]:
    """The model's config and what its folder holds (None if weights are random); raises if it cannot be built as asked.

    Only the headers of the folder's weight files are read.
    """
    hf_config = conversion.resolve_config(config.model)
    models.check_divides(hf_config, config.parallel)
    models.check_recomputation(hf_config, config.parallel, config.compute)
    models.check_fused(hf_config, config.parallel, config.compute, config.policy.dtype)
    if config.experts.replay and not models.family_of(hf_config).has_experts:
        raise ConfigError("experts.replay=true, but the model has no experts", hint="set experts.replay=false")
    return hf_config, conversion.check_initial(config.model, hf_config)


def matching_prompts(config: RunConfig, hf_config: PretrainedConfig) -> PromptSource:
    """The prompts of a recipe; raises if their tokenizer or the length of their sequences does not fit the model."""
    source = load_prompts(
        config.data,
        tokenizer_of(config.model),
        with_rows=takes_row(config.rewards.kind),
        trains=bool(config.train.steps or config.sft.steps),
    )
    check_tokenizer(config.model, hf_config, source.tokenizer)
    check_lengths(config, hf_config, source)
    room = models.longest_sequence(hf_config)
    if config.sft.steps and source.demonstrator is None:
        raise ConfigError(
            f"sft.steps={config.sft.steps}, but data.source={config.data.source} has no demonstrations",
            hint="set sft.steps=0"
            + ("" if config.data.source in GENERATED else ", or name the column of solutions in data.columns.solution"),
        )
    if config.sft.steps and source.longest_demonstration > room:
        raise ModelError(
            f"the longest prompt with its data.columns.solution={config.data.columns.solution} has "
            f"{source.longest_demonstration} tokens, more than the model's max_position_embeddings={room}",
            hint="leave such rows out of the file, or set sft.steps=0",
        )
    return source


def check_tokenizer(
    source: models.ModelConfig, hf_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise `ModelError` if the tokenizer has tokens that the model does not."""
    if len(tokenizer) > hf_config.vocab_size:
        raise ModelError(
            f"the tokenizer{f' of model.path={source.path}' if source.path else ''} has {len(tokenizer)} tokens, the "
            f"model's vocab_size is {hf_config.vocab_size}",
            hint="the tokenizer files are not this model's: fetch them again"
            if source.path
            else f"set model.hf_config.vocab_size to {len(tokenizer)} or more",
        )


def matching_ends(
    config: RunConfig, hf_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """The tokens that end a response, from every place that names one; raises if one is not a token of the model.

    A config without an `eos_token_id` gets the tokenizer's, since it is written beside the trained weights.
    """
    if tokenizer.eos_token_id is None and config.sft.steps:
        raise ModelError(
            f"sft.steps={config.sft.steps}, but the tokenizer has no eos_token to end demonstrations with",
            hint="name it in tokenizer_config.json",
        )
    if hf_config.eos_token_id is None:
        hf_config.eos_token_id = tokenizer.eos_token_id
    named = {
        "eos_token_id of the tokenizer": tokenizer.eos_token_id,
        **conversion.written_ends(config.model),
        "rollout.stop_tokens": config.rollout.stop_tokens,
    }
    return stop_tokens_of(named, hf_config.vocab_size)


def tokenizer_of(source: models.ModelConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model's folder, None if the model has no folder; raises `ModelError`."""
    if not source.path:
        return None
    try:
        found = AutoTokenizer.from_pretrained(source.path, trust_remote_code=False)
    except Exception as error:  # tokenizers raise this very class
        raise ModelError(
            f"model.path={source.path} has no readable tokenizer: {type(error).__name__}: {models.shown(error)}",
            hint="copy the model's tokenizer files into the folder",
        ) from error
    # If a folder has none of these files, transformers makes a tokenizer that cannot read text.
    if not any((Path(source.path) / name).is_file() for name in found.vocab_files_names.values()):
        raise ModelError(
            f"model.path={source.path} has no tokenizer: none of {', '.join(found.vocab_files_names.values())}",
            hint="copy the model's tokenizer files into the folder",
        )
    return found
