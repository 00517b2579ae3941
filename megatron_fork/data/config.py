"""What a run's prompts are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from megatron_fork.data.answers import NO_ANSWER, AnswerForm, AnswerLists, Boxes
from megatron_fork.data.columns import Columns
from megatron_fork.data.presets import PRESETS
from megatron_fork.errors import ConfigError
from megatron_fork.recipe import FilePath, OneOf, Pattern, PositiveInt, Settings, Tokens

# Tasks that are made here and need no file; each has a verifier of its own name.
GENERATED = ("reach", "arithmetic", "reasoning_gym")


@dataclass
class GeneratorConfig(Settings, room="data.generator"):
    """A generated task; "reach" has one set of prompts and takes none of these."""

    task: str = ""
    """With `data.source: reasoning_gym`: the name of the generator, such as `gsm_symbolic`."""
    size: PositiveInt = 4096
    """How many tasks are made."""
    seed: int = 0
    """Of the tasks; any whole number."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Handed to the generator. Arithmetic chains take `terms` and `largest`."""


@dataclass
class DataConfig(Settings, room="data"):
    """The prompt set of a run."""

    source: FilePath = "reach"
    """`reach`, `arithmetic`, `reasoning_gym`, or a file (JSON lines, Parquet, CSV, Arrow) or dataset folder."""
    preset: Annotated[str, OneOf(tuple(PRESETS))] | None = None
    """Fills in the fields below for a published file (docs/data.md)."""
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
    rows: PositiveInt | None = None
    """How many the source must have; None: any."""
    sha256: Annotated[str, Pattern("^[0-9a-f]{64}$")] | None = None
    """Of the file, where it must be a certain one: 64 hexadecimal digits, lower case."""
    over_long: Literal["refuse", "drop"] = "refuse"
    """Prompts of more than `max_prompt_tokens`; none is ever cut."""
    max_prompt_tokens: Tokens = 2048
    """The longest prompt that is taken."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    held_out: PositiveInt = 256
    """Prompts kept from reinforcement learning, for evaluation, each with a question of its own. Demonstrations cover all: the
    warm start stands for a base model, which has seen the arithmetic."""
    seed: int = 0
    """Of the split; not of the order, which the run's seed gives."""

    def check(self) -> None:
        if self.preset is not None and self.source in GENERATED:
            raise ConfigError(
                f"data.preset={self.preset} with data.source={self.source}",
                hint="set data.source to the downloaded file",
            )
        if (self.source == "reasoning_gym") != bool(self.generator.task):
            raise ConfigError(
                f"data.source={self.source} with data.generator.task={self.generator.task!r}",
                hint="a task goes with data.source=reasoning_gym, which needs one, such as gsm_symbolic",
            )
