"""Tasks that are generated and need no file: their questions, tokenizers and demonstrators."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_fork.data import arithmetic, reach
from megatron_fork.data.config import DataConfig
from megatron_fork.errors import DataError
from megatron_fork.experience import Prompt
from megatron_fork.rewards import Reference, generate_tasks, read_reference

Demonstrator = Callable[[Prompt, random.Random], str]
"""From (prompt, random generator) to a response as text, without the end token."""
Task = tuple[str, str, Reference | None, dict[str, Any]]
"""(place, question, answers, row); None: it has no answer."""


def tokenizer_of_task(source: str) -> PreTrainedTokenizerBase:
    if source not in TOKENIZERS:
        raise DataError(f"data.source={source} needs a tokenizer", hint="set model.path to a folder with a tokenizer")
    return TOKENIZERS[source]()


def _of_reach(config: DataConfig) -> Iterator[Task]:
    for number, (question, answer) in enumerate(reach.all_tasks()):
        yield f"reach task {number}", question, Reference((answer,)), {}


def _of_arithmetic(config: DataConfig) -> Iterator[Task]:
    generator = config.generator
    for chain in arithmetic.chains(generator.size, generator.seed, generator.parameters):
        yield f"chain {chain}", arithmetic.prompt_text(chain), Reference((chain,)), {}


def _of_reasoning_gym(config: DataConfig) -> Iterator[Task]:
    generator = config.generator
    tasks = generate_tasks(generator.task, size=generator.size, seed=generator.seed, parameters=generator.parameters)
    for number, (question, answer) in enumerate(tasks):
        yield f"{generator.task} task {number}", question, Reference((answer,)), {}


def _task_of(prompt: Prompt) -> str:
    """The answer for the task's own verifier, without fields for other verifiers."""
    (task,) = read_reference(prompt.answer).answers
    return task


GENERATORS: dict[str, Callable[[DataConfig], Iterator[Task]]] = {
    "reach": _of_reach,
    "arithmetic": _of_arithmetic,
    "reasoning_gym": _of_reasoning_gym,
}
TOKENIZERS = {"reach": reach.build_tokenizer, "arithmetic": arithmetic.build_tokenizer}
DEMONSTRATORS: dict[str, Demonstrator] = {
    "reach": lambda prompt, generator: reach.demonstrate(_task_of(prompt), generator),
    "arithmetic": lambda prompt, generator: arithmetic.demonstrate(_task_of(prompt), generator),
}
