"""Where prompts come from: the "reach" task, or JSON lines on disk; split into training and held-out prompts."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from megatron_fork.data import reach
from megatron_fork.errors import ConfigError, DataError
from megatron_fork.experience import Demonstration, Prompt


@dataclass
class Config:
    """The prompt set of a run."""

    source: str = "reach"
    """`reach`, or a JSON-lines file with the fields `prompt` and `answer`."""
    held_out: int = 256
    """Prompts kept from reinforcement learning, for evaluation. Demonstrations cover all: the warm start stands for a base
    model, which has seen the arithmetic."""
    seed: int = 0
    """Of the split; not of the order, which the run's seed gives."""
    max_prompt_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.held_out < 1:
            raise ConfigError(
                f"data.held_out={self.held_out} leaves nothing to evaluate on", hint="keep at least 1 prompt, say 256"
            )


@dataclass(frozen=True)
class PromptSource:
    """Training and held-out prompts with their tokenizer."""

    training: Sequence[Prompt]
    held_out: Sequence[Prompt]
    tokenizer: PreTrainedTokenizerBase
    has_demonstrator: bool

    @property
    def longest_prompt(self) -> int:
        """In tokens."""
        return max(len(prompt.tokens) for prompt in [*self.training, *self.held_out])

    def draw(self, count: int, *, start: int, seed: int) -> list[Prompt]:
        """Prompts `start` to `start + count` of an endless order: a new shuffle of the set in every epoch."""
        drawn: list[Prompt] = []
        while len(drawn) < count:
            epoch, index = divmod(start + len(drawn), len(self.training))
            order = list(range(len(self.training)))
            random.Random(f"{seed}/{epoch}").shuffle(order)
            drawn += [self.training[place] for place in order[index : index + count - len(drawn)]]
        return drawn

    def demonstrations(self, count: int, *, step: int, seed: int) -> list[Demonstration]:
        """`count` demonstrations for warm-start step `step`; raises `ConfigError` where the source has none."""
        if not self.has_demonstrator or not isinstance(self.tokenizer, PreTrainedTokenizerFast):
            raise ConfigError("sft.steps > 0, but data.source has no demonstrations", hint="set sft.steps=0")
        generator = random.Random(f"{seed}/demonstrations/{step}")
        prompts = generator.choices([*self.training, *self.held_out], k=count)
        return [reach.demonstrate(prompt, number, self.tokenizer, generator) for number, prompt in enumerate(prompts)]


def load_prompts(config: Config, tokenizer: PreTrainedTokenizerBase | None) -> PromptSource:
    """The prompt set that `config` names; raises `DataError` when it is missing, unreadable or too small.

    `tokenizer` is the model's; the "reach" task brings its own and needs none.
    """
    is_reach = config.source == "reach"
    if is_reach:
        tokenizer = tokenizer or reach.build_tokenizer()
        prompts = reach.all_prompts(tokenizer)
    else:
        if tokenizer is None:
            raise DataError(
                f"data.source={config.source} needs a tokenizer", hint="set model.path to a folder with a tokenizer"
            )
        prompts = _read_json_lines(Path(config.source), tokenizer)
    for prompt in prompts:
        if len(prompt.tokens) > config.max_prompt_tokens:
            raise DataError(
                f"prompt {prompt.index} of {config.source} has {len(prompt.tokens)} tokens, more than "
                f"data.max_prompt_tokens={config.max_prompt_tokens}",
                hint="raise the limit or remove the prompt",
            )
    if len(prompts) <= config.held_out:
        raise DataError(
            f"data.source={config.source} has {len(prompts)} prompts, data.held_out={config.held_out} leaves none to train on",
            hint="give more prompts or hold out fewer",
        )
    random.Random(f"{config.seed}/held-out").shuffle(prompts)
    return PromptSource(prompts[config.held_out :], prompts[: config.held_out], tokenizer, has_demonstrator=is_reach)


def _read_json_lines(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    if not path.is_file():
        raise DataError(f"data.source={path} is not a file", hint="give `reach` or a JSON-lines file")
    prompts: list[Prompt] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            text, answer = record["prompt"], record["answer"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} line {number} has no prompt and answer: {error!r}",
                hint='each line is an object like {"prompt": "...", "answer": "..."}',
            ) from error
        tokens = tuple(tokenizer(text)["input_ids"]) if isinstance(text, str) else ()
        if not tokens:
            raise DataError(
                f"{path} line {number} has the prompt {text!r}", hint="a prompt is text of at least one token"
            )
        prompts.append(Prompt(len(prompts), text, tokens, str(answer)))
    return prompts
