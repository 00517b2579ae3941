"""The prompts of a generated task or of a file on disk, split into training and held-out prompts."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from megatron_fork.data.columns import solution_of
from megatron_fork.data.config import GENERATED, DataConfig
from megatron_fork.data.conversations import whole_text
from megatron_fork.data.file_prompts import check_file, of_file, of_unanswered_file
from megatron_fork.data.generated import DEMONSTRATORS, GENERATORS, Demonstrator, tokenizer_of_task
from megatron_fork.data.prompt_rows import PromptRows, PromptStore
from megatron_fork.data.split import question_key, split_by_question
from megatron_fork.data.templates import brings_special_tokens, find_template
from megatron_fork.errors import ConfigError, DataError
from megatron_fork.experience import Demonstration, Prompt
from megatron_fork.rewards import Reference

BATCH_PROMPTS = 1024

Part = Literal["split", "whole", "whole_unanswered"]
"""How a source is divided: for training, or as one set; `whole_unanswered`: where a row has no answer, it is empty."""

PlacedPrompt = tuple[str, str, str, str, int]
"""(place, text, answers as one string, solution or "", key of the question)"""


@dataclass
class PromptCounts:
    """How many rows of a source were kept, and why others were not."""

    rows: int = 0
    kept: int = 0
    duplicates: int = 0
    over_long: int = 0
    unanswered: int = 0
    alternatives: int = 0
    """Kept rows with several answers, any of which is right."""
    of_held_out: int = 0
    """Rows in neither part, since another row with their question is held out."""

    def __str__(self) -> str:
        counted = (
            (self.duplicates, "duplicates dropped"),
            (self.over_long, "over-long dropped"),
            (self.unanswered, "without an answer dropped"),
            (self.alternatives, "with several answers, any of which is right"),
            (self.of_held_out, "left out as repeats of a held-out question"),
        )
        shown = [f"{count:,} {what}" for count, what in counted if count]
        return ", ".join([f"{self.kept:,} prompts of {self.rows:,} rows", *shown])


@dataclass(frozen=True)
class PromptSource:
    """Training and held-out prompts with their tokenizer."""

    training: Sequence[Prompt]
    held_out: Sequence[Prompt]
    tokenizer: PreTrainedTokenizerBase
    longest_prompt: int
    """In tokens."""
    counts: PromptCounts
    demonstrator: Demonstrator | None = None
    demonstrates_held_out: bool = False
    """Whether the warm start may imitate held-out prompts too, as for generated tasks."""
    longest_demonstration: int = 0
    """Prompt, solution and end token, in tokens; 0 if solutions are generated."""
    question_keys: Sequence[int] = ()
    """Of every prompt, at its `index`; see `question_key`."""

    def prompt_id(self, prompt: Prompt) -> str:
        """The same for the same question, whatever the template and the file: 16 hexadecimal digits."""
        return f"{self.question_keys[prompt.index]:016x}"

    def draw(self, count: int, *, start: int, seed: int) -> list[Prompt]:
        """Prompts `start` to `start + count` of an endless order, with a new shuffle of the set in every epoch."""
        drawn: list[Prompt] = []
        while len(drawn) < count:
            epoch, index = divmod(start + len(drawn), len(self.training))
            order = _order(len(self.training), seed, epoch)
            drawn += [self.training[place] for place in order[index : index + count - len(drawn)]]
        return drawn

    def demonstrations(self, count: int, *, step: int, seed: int) -> list[Demonstration]:
        """`count` demonstrations for warm-start step `step`; raises `ConfigError` if the source has none."""
        if self.demonstrator is None:
            raise ConfigError("sft.steps > 0, but data.source has no demonstrations", hint="set sft.steps=0")
        generator = random.Random(f"{seed}/demonstrations/{step}")
        training = len(self.training)
        held_out = len(self.held_out) if self.demonstrates_held_out else 0
        places = generator.choices(range(training + held_out), k=count)
        prompts = [self.training[p] if p < training else self.held_out[p - training] for p in places]
        texts = [self.demonstrator(prompt, generator) for prompt in prompts]
        responses = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        return [
            Demonstration(number, prompt, (*response, end))
            for number, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]


def load_prompts(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    with_rows: bool = False,
    part: Part = "split",
    trains: bool = True,
) -> PromptSource:
    """The prompt set that `config` names; raises `DataError` if it is missing, unreadable or too small.

    Args:
        config: of the set.
        tokenizer: the model's; "reach" and "arithmetic" have their own and need none.
        with_rows: answers carry the row's data_source and extra_info, for a verifier that takes them.
        part: `split` by `config.held_out`; the other two hold out every prompt, in the order of the file.
        trains: whether a split must leave prompts to train on.

    """
    tokenizer = tokenizer or tokenizer_of_task(config.source)
    if config.source not in GENERATED:
        check_file(config)
    store = PromptStore(tokenizer, add_special_tokens=not brings_special_tokens(config.template))
    counts = PromptCounts()
    keys: array[int] = array("Q")
    longest, longest_demonstration = _fill(
        store,
        keys,
        _prompts(config, tokenizer, counts, with_rows, answered=part != "whole_unanswered"),
        config,
        counts,
        tokenizer,
    )
    counts.kept = len(store)
    if config.rows is not None and counts.rows != config.rows:
        raise DataError(
            f"data.source={config.source} has {counts.rows} rows, not data.rows={config.rows}",
            hint="download it again; data.rows=null takes any number",
        )
    if not len(store):
        raise DataError(
            f"data.source={config.source} has no prompts left of its {counts.rows} rows",
            hint="see data.unanswered, data.over_long and data.max_prompt_tokens",
        )
    if part == "split":
        training, held_out = split_by_question(keys, config.held_out, config.seed)
    else:
        training, held_out = array("L"), array("L", range(len(store)))
    if part == "split" and trains and not training:
        questions = f" with {len(held_out)} different questions" if len(held_out) < len(store) else ""
        raise DataError(
            f"data.source={config.source} has {len(store)} prompts{questions}, data.held_out={config.held_out} leaves none "
            "to train on",
            hint="give more prompts or hold out fewer; `megatron-fork evaluate` takes whole sets",
        )
    counts.of_held_out = len(store) - len(training) - len(held_out)
    parts = PromptRows(store, training), PromptRows(store, held_out)
    made = DEMONSTRATORS.get(config.source)
    has_solutions = made is None and config.columns.solution is not None and config.source not in GENERATED
    demonstrator = (lambda prompt, _: store.solution(prompt.index)) if has_solutions else made
    return PromptSource(
        *parts,
        tokenizer,
        longest,
        counts,
        demonstrator,
        demonstrates_held_out=made is not None,
        longest_demonstration=longest_demonstration,
        question_keys=keys,
    )


def _fill(
    store: PromptStore,
    keys: array[int],
    prompts: Iterator[PlacedPrompt],
    config: DataConfig,
    counts: PromptCounts,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[int, int]:
    """Append all prompts that are short enough, and their keys; returns the longest prompt and demonstration in tokens."""
    longest = longest_demonstration = 0
    while batch := list(islice(prompts, BATCH_PROMPTS)):
        try:
            tokens = store.tokenize([each[1] for each in batch])
            solved = [each[3] for each in batch if each[3]]
            imitated = iter(tokenizer(solved, add_special_tokens=False)["input_ids"] if solved else [])
        except Exception as error:  # the tokenizers library raises nothing more specific
            raise DataError(
                f"the tokenizer cannot read a prompt between {batch[0][0]} and {batch[-1][0]}: {error}",
                hint="set model.path to a model whose tokenizer knows the text",
            ) from error
        for (place, text, answer, solution, key), ids in zip(batch, tokens, strict=True):
            response = len(next(imitated)) + 1 if solution else 0
            if not ids:
                raise DataError(f"{place} has the prompt {text!r}", hint="a prompt is text of at least one token")
            if len(ids) <= config.max_prompt_tokens:
                store.append(text, answer, solution)
                keys.append(key)
                longest = max(longest, len(ids))
                longest_demonstration = max(longest_demonstration, len(ids) + response if solution else 0)
            elif config.over_long == "drop":
                counts.over_long += 1
            else:
                raise DataError(
                    f"{place} has {len(ids)} tokens, more than data.max_prompt_tokens={config.max_prompt_tokens}",
                    hint="raise the limit, or leave such prompts out with data.over_long=drop",
                )
    store.flush()
    return longest, longest_demonstration


def _prompts(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, counts: PromptCounts, with_rows: bool, *, answered: bool
) -> Iterator[PlacedPrompt]:
    """Every prompt of the source as text, after duplicates and rows without an answer were handled."""
    make = GENERATORS.get(config.source, of_file if answered else of_unanswered_file)
    template = find_template(config.template, tokenizer)
    seen: set[bytes] = set()
    for place, question, reference, row in make(config):
        counts.rows += 1
        if reference is None:
            counts.unanswered += 1
            continue
        if config.duplicates != "keep":
            content = f"{len(asked := whole_text(question))} {asked}{reference.encoded()}".encode(
                "utf-8", "surrogatepass"
            )
            digest = hashlib.blake2b(content, digest_size=16).digest()
            if digest in seen and config.duplicates == "refuse":
                raise DataError(f"{place} repeats the question and answer of another row", hint="data.duplicates=drop")
            if digest in seen:
                counts.duplicates += 1
                continue
            seen.add(digest)
        counts.alternatives += len(reference.answers) > 1
        if with_rows:
            reference = _of_row(reference, row, config.source)
        column = config.columns.solution if make is of_file else None
        solution = solution_of(row, column, place) if column is not None else ""
        yield place, template(question, row, place), _encoded(reference, place), solution, question_key(question)


def _of_row(reference: Reference, row: dict[str, Any], source: str) -> Reference:
    """The reference with data_source and extra_info of the row, which verifiers with verl's arguments take."""
    named = row.get("data_source")
    return replace(reference, data_source=named if isinstance(named, str) else source, extra_info=row.get("extra_info"))


def _encoded(reference: Reference, place: str) -> str:
    try:
        return reference.encoded()
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{place} has a value in extra_info that JSON cannot hold: {error}",
            hint="write it as text, numbers, lists and objects",
        ) from error


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> array[int]:
    order = array("L", range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order
