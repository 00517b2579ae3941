"""The questions of a file on disk, with the answers that their rows have."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from megatron_fork.data.answers import NoAnswer, reader
from megatron_fork.data.columns import pick, question_of, without
from megatron_fork.data.config import DataConfig
from megatron_fork.data.conversations import stripped
from megatron_fork.data.generated import Task
from megatron_fork.data.presets import PRESETS
from megatron_fork.data.rows import data_files, read_rows
from megatron_fork.errors import ConfigError, DataError
from megatron_fork.rewards import Reference


def of_file(config: DataConfig) -> Iterator[Task]:
    """Questions with their answers, in the order of the file; raises `DataError` for a row that has none, as `config` says."""
    places: dict[str, str] = {}
    answers = reader(
        config.columns.answer, config.answer_form, config.answer_lists, config.boxes, no_answer=config.no_answer
    )
    for place, question, row in _questions(config):
        if config.columns.id is not None:
            name = str(pick(row, config.columns.id, place))
            if name in places:
                raise DataError(
                    f"{place} has the {config.columns.id} {name!r} of {places[name]}",
                    hint="make them unique, or set data.columns.id=null",
                )
            places[name] = place
        reference = None
        try:
            reference = Reference(answers.read(pick(row, config.columns.answer, place), place))
        except NoAnswer as error:
            if config.unanswered == "refuse":
                message, hint = error.args
                raise DataError(message, hint=hint) from error
        yield place, question, reference, row


def of_unanswered_file(config: DataConfig) -> Iterator[Task]:
    """A question without a readable answer has an empty one: nothing will judge the responses."""
    answers = reader(
        config.columns.answer, config.answer_form, config.answer_lists, config.boxes, no_answer=config.no_answer
    )
    for place, question, row in _questions(config):
        try:
            found = answers.read(pick(row, config.columns.answer, place), place)
        except (NoAnswer, DataError):
            found = ("",)
        yield place, question, Reference(found), row


def _questions(config: DataConfig) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for place, row in read_rows(Path(config.source), config.split, config.subset):
        asked = question_of(row, config.columns.prompt, place)
        question = stripped(
            asked, partial(without, prefix=config.prompt_prefix, suffix=config.prompt_suffix, place=place)
        )
        yield place, question, row


def check_file(config: DataConfig) -> None:
    """Raise an error unless the file or folder is there, and is the one that `config` means."""
    by_preset = PRESETS[config.preset]["data"] if config.preset else {}
    for name, value in (("split", config.split), ("subset", config.subset)):
        if value not in (None, by_preset.get(name)) and Path(config.source).is_file():
            raise ConfigError(
                f"data.{name}={value} with data.source={config.source}, which is one file and has none",
                hint=f"set data.{name}=null, or name the folder of the data set",
            )
    files = data_files(Path(config.source), config.split, config.subset)
    if config.sha256 is None:
        return
    if len(files) != 1:
        raise DataError(
            f"data.sha256 needs a single file, but data.source={config.source} has {len(files)}", hint="name the file"
        )
    with files[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != config.sha256:
        raise DataError(
            f"{files[0]} has the SHA-256 {found}, not data.sha256={config.sha256}", hint="download it again"
        )
