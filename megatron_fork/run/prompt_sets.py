"""The prompt sets of an evaluation, read for a model: each whole, or the held-out part of the training prompts."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from megatron_fork.config import RunConfig
from megatron_fork.data import PromptSource, load_prompts
from megatron_fork.errors import ConfigError, MegatronForkError
from megatron_fork.evaluation import PromptSet, prompt_sets
from megatron_fork.rewards import check_verifier, takes_row
from megatron_fork.run.prompt_checks import check_lengths, check_verifier_fits


@dataclass(frozen=True)
class LoadedSet:
    """A prompt set with its prompts."""

    chosen: PromptSet
    source: PromptSource

    @property
    def name(self) -> str:
        return self.chosen.name


def load_set(
    chosen: PromptSet,
    config: RunConfig,
    hf_config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    judged: bool = True,
) -> LoadedSet:
    """Read a set, whose prompts need no answers unless they are `judged`; raises an error that names it."""
    rewards = chosen.rewards or config.rewards
    if judged:
        place = f"evaluation.sets.{chosen.name}.rewards" if chosen.rewards else "rewards"
        check_verifier_fits(rewards, chosen.data.source, f"the source of {chosen.name}", place=place)
    try:
        if judged:
            check_verifier(rewards)
        source = load_prompts(
            chosen.data,
            tokenizer,
            with_rows=judged and takes_row(rewards.kind),
            part="split" if not chosen.is_whole else "whole" if judged else "whole_unanswered",
            trains=False,
        )
        check_lengths(config, hf_config, source)
    except MegatronForkError as error:
        raise type(error)(f"{chosen.name}: {error.message}", hint=error.hint) from error
    if not source.held_out:
        raise ConfigError(f"{chosen.name} has no prompts: data.held_out=0", hint="name a set: --set NAME=FILE")
    return LoadedSet(chosen, source)


def matching_sets(
    config: RunConfig, hf_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[LoadedSet, ...]:
    """The sets that a run evaluates beside its held-out prompts; raises if one cannot be read or does not fit the model."""
    chosen = prompt_sets(config.evaluation, config.data, config.rewards)
    if not (chosen or config.data.held_out):
        raise ConfigError(
            "data.held_out=0 without evaluation.sets: nothing would be evaluated",
            hint="hold prompts out, or name a set: evaluation.sets.NAME.source=FILE",
        )
    return tuple(load_set(each, config, hf_config, tokenizer) for each in chosen)
