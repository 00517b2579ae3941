"""Settings of a run's prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from megatron_fork.data.answers import NO_ANSWER, AnswerForm, AnswerLists, Boxes
from megatron_fork.data.columns import Columns
from megatron_fork.data.presets import PRESETS
from megatron_fork.errors import ConfigError
from megatron_fork.recipe import FilePath, NonNegativeInt, OneOf, Pattern, PositiveInt, Settings, Tokens

# Tasks that are generated and need no file; each has a verifier of the same name.
GENERATED = ("reach", "arithmetic", "reasoning_gym")


@dataclass
class GeneratorConfig(Settings, room="data.generator"):
    """A generated task; "reach" has one fixed set of prompts and uses none of these fields."""

    task: str = ""
    """With `data.source: reasoning_gym`: the name of the generator, such as `gsm_symbolic`."""
    size: PositiveInt = 4096
    """How many tasks are generated."""
    seed: int = 0
    """Seed of the tasks; any whole number."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Arguments of the generator. Arithmetic chains take `terms` and `largest`."""


@dataclass
class DataConfig(Settings, room="data"):
    """The prompt set of a run."""

    source: FilePath = "reach"
    """`reach`, `arithmetic`, `reasoning_gym`, or a file (JSON lines, Parquet, CSV, Arrow) or dataset folder."""
    preset: Annotated[str, OneOf(tuple(PRESETS))] | None = None
    """Fills in the fields below for a published file (docs/data.md)."""
    split: str | None = None
    """Which split to read, if a folder has several."""
    subset: str | None = None
    """Which subset to read, if a folder has several, by its name in README.md or its folder's name; `*`: all together."""
    columns: Columns = field(default_factory=Columns)
    answer_form: AnswerForm = "whole"
    r"""Which part of its column is the answer: the whole, the content of its last `\boxed{...}`, or what follows `####`."""
    boxes: Boxes = "refuse"
    """If a solution has several different boxes: `last`, as in evaluations of MATH, or `all`, as one answer."""
    answer_lists: AnswerLists = "alternatives"
    """A list holds `alternatives`, any of which is right, or `parts` of one answer; `json` passes it on as JSON text."""
    unanswered: Literal["refuse", "drop"] = "refuse"
    """What to do with rows without an answer: null, empty, not a number, or a word of `no_answer`."""
    no_answer: list[str] = field(default_factory=lambda: list(NO_ANSWER))
    """Words that mean that a row has no answer, in upper or lower case."""
    prompt_prefix: str = ""
    """Text that the file has before every question, which is removed."""
    prompt_suffix: str = ""
    """Text that the file has after every question, which is removed."""
    template: str = "none"
    """`none`, `paper`, `qwen3`, `qwen3_no_thinking`, `chat` or `chat_no_thinking` (the tokenizer's own), or Jinja."""
    duplicates: Literal["keep", "drop", "refuse"] = "keep"
    """What to do with rows that repeat a question and its answer."""
    rows: PositiveInt | None = None
    """How many rows the source must have; None: any number."""
    sha256: Annotated[str, Pattern("^[0-9a-f]{64}$")] | None = None
    """SHA-256 that the file must have: 64 hexadecimal digits, lower case; None: any."""
    over_long: Literal["refuse", "drop"] = "refuse"
    """What to do with prompts of more than `max_prompt_tokens`; no prompt is ever cut."""
    max_prompt_tokens: Tokens = 2048
    """Length of the longest prompt that is accepted."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    held_out: NonNegativeInt = 256
    """Prompts with different questions that are kept from reinforcement learning for evaluation; 0: only `evaluation.sets` are
    evaluated. Demonstrations of generated tasks include them: the warm start stands for a base model, which has seen the
    arithmetic."""
    seed: int = 0
    """Seed of the split; the run's seed gives the order."""

    def check(self) -> None:
        if self.preset is not None and self.source in GENERATED:
            raise ConfigError(
                f"data.preset={self.preset} with data.source={self.source}",
                hint="set data.source to the downloaded file",
            )
        if (self.source == "reasoning_gym") != bool(self.generator.task):
            raise ConfigError(
                f"data.source={self.source} with data.generator.task={self.generator.task!r}",
                hint="data.source=reasoning_gym needs a task, such as gsm_symbolic; other sources take none",
            )
