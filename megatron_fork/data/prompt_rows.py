"""Prompts of a file, kept out of memory: text and answer lie in an unlinked temporary file, tokens are made when drawn.

A million prompts take 24 MB of memory. The file is made where `TMPDIR` says, and disappears with the process.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

from transformers import PreTrainedTokenizerBase

from megatron_fork.experience import Prompt

FLUSH_BYTES = 1 << 20


class PromptStore:
    """Texts with their answers, in the order of `append`; `prompt` makes the prompt of a place."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._add_special_tokens = add_special_tokens
        self._file = tempfile.TemporaryFile(prefix="megatron-fork-prompts-")  # noqa: SIM115
        self._pending = bytearray()
        self._ends = array("Q")  # of text and answer in turn
        self._written = 0

    def __len__(self) -> int:
        return len(self._ends) // 2

    def append(self, text: str, answer: str) -> None:
        for part in (text, answer):
            self._pending += part.encode("utf-8", "surrogatepass")
            self._ends.append(self._written + len(self._pending))
        if len(self._pending) >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Make what was appended readable."""
        self._file.write(self._pending)
        self._file.flush()
        self._written += len(self._pending)
        self._pending.clear()

    def prompt(self, place: int) -> Prompt:
        start = self._ends[2 * place - 1] if place else 0
        middle, end = self._ends[2 * place], self._ends[2 * place + 1]
        content = os.pread(self._file.fileno(), end - start, start)
        text = content[: middle - start].decode("utf-8", "surrogatepass")
        answer = content[middle - start :].decode("utf-8", "surrogatepass")
        return Prompt(place, text, tuple(self.tokenize([text])[0]), answer)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=self._add_special_tokens)["input_ids"]


class PromptRows(Sequence[Prompt]):
    """Some places of a store, in an order."""

    def __init__(self, store: PromptStore, places: array[int]) -> None:
        self._store = store
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> PromptRows: ...
    def __getitem__(self, index: int | slice) -> Prompt | PromptRows:
        if isinstance(index, slice):
            return PromptRows(self._store, self._places[index])
        return self._store.prompt(self._places[index])

    def __iter__(self) -> Iterator[Prompt]:
        return (self._store.prompt(place) for place in self._places)
