"""What a run's prompts are made from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_fork.data.answers import NO_ANSWER, AnswerForm, AnswerLists, Boxes
from megatron_fork.data.columns import Columns
from megatron_fork.data.presets import PRESETS
from megatron_fork.errors import ConfigError

# Tasks that are made here and need no file; each has a verifier of its own name.
GENERATED = ("reach", "arithmetic", "reasoning_gym")


@dataclass
class GeneratorConfig:
    """A generated task; "reach" has one set of prompts and takes none of these."""

    task: str = ""
    """With `data.source: reasoning_gym`: the name of the generator, such as `gsm_symbolic`."""
    size: int = 4096
    """How many tasks are made; 1 or more."""
    seed: int = 0
    """Of the tasks; a whole number."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Handed to the generator. Arithmetic chains take `terms` and `largest`."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"data.generator.size={self.size} is not a count", hint="give 1 or more, say 4096")


@dataclass
class DataConfig:
    """The prompt set of a run."""

    source: str = "reach"
    """`reach`, `arithmetic`, `reasoning_gym`, or a file (JSON lines, Parquet, CSV, Arrow) or dataset folder."""
    preset: str | None = None
    """Fills in the fields below for a published file: `dapo_math_17k`, `math`, `gsm8k`, `aime_2024`, ... (docs/data.md)."""
    split: str | None = None
    """Of a folder that has several."""
    subset: str | None = None
    """Of a folder that has several, as its README.md or its folders name them; `*`: all of them together."""
    columns: Columns = field(default_factory=Columns)
    answer_form: AnswerForm = "whole"
    r"""Where the answer stands in its column: all of it, in its last `\boxed{...}`, or after `####`."""
    boxes: Boxes = "refuse"
    """Of a solution with several different boxes: `last`, as MATH is evaluated, or `all`, as one answer of several parts."""
    answer_lists: AnswerLists = "alternatives"
    """A list has `alternatives`, any of which is right, or `parts` of one answer; `json` hands it on as JSON text."""
    unanswered: Literal["refuse", "drop"] = "refuse"
    """Rows without an answer: null, empty, not a number, or a word of `no_answer`."""
    no_answer: list[str] = field(default_factory=lambda: list(NO_ANSWER))
    """Words that stand where a set has no answer; case does not count."""
    prompt_prefix: str = ""
    """What the file puts before every question, and is taken off."""
    prompt_suffix: str = ""
    """What the file puts behind every question, and is taken off."""
    template: str = "none"
    """`none`, `paper`, `qwen3`, `qwen3_no_thinking`, `chat` or `chat_no_thinking` (the tokenizer's own), or Jinja."""
    duplicates: Literal["keep", "drop", "refuse"] = "keep"
    """Rows with the same question and answer."""
    rows: int | None = None
    """How many the source must have; None: any."""
    sha256: str | None = None
    """Of the file, where it must be a certain one."""
    over_long: Literal["refuse", "drop"] = "refuse"
    """Prompts of more than `max_prompt_tokens`; none is ever cut."""
    max_prompt_tokens: int = 2048
    """The longest prompt that is taken, in tokens; 1 or more."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    held_out: int = 256
    """Prompts kept from reinforcement learning, for evaluation, each with a question of its own. Demonstrations cover all: the
    warm start stands for a base model, which has seen the arithmetic."""
    seed: int = 0
    """Of the split; not of the order, which the run's seed gives."""

    def __post_init__(self) -> None:
        if self.held_out < 1:
            raise ConfigError(
                f"data.held_out={self.held_out} leaves nothing to evaluate on", hint="keep at least 1 prompt, say 256"
            )
        if self.max_prompt_tokens < 1:
            raise ConfigError(f"data.max_prompt_tokens={self.max_prompt_tokens} is not a count", hint="say 2048")
        if self.preset is not None and self.preset not in PRESETS:
            raise ConfigError(f"data.preset={self.preset} is not a preset", hint=f"known: {', '.join(PRESETS)}")
        if self.preset is not None and self.source in GENERATED:
            raise ConfigError(
                f"data.preset={self.preset} with data.source={self.source}",
                hint="set data.source to the downloaded file",
            )
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ConfigError(f"data.sha256={self.sha256} is not a SHA-256", hint="64 hexadecimal digits, lower case")
        if (self.source == "reasoning_gym") != bool(self.generator.task):
            raise ConfigError(
                f"data.source={self.source} with data.generator.task={self.generator.task!r}",
                hint="a task goes with data.source=reasoning_gym, which needs one, such as gsm_symbolic",
            )
