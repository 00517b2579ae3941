"""Prompts of a file, kept out of memory: text and answer are in an unlinked temporary file, and tokens are made when drawn.

A million prompts take 32 MB of memory. The file is in `TMPDIR`, and disappears with the process.
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
_PARTS = 3


class PromptStore:
    """Texts with answers and solutions, in the order of `append`; `prompt` makes the prompt at a place."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._add_special_tokens = add_special_tokens
        self._file = tempfile.TemporaryFile(prefix="megatron-fork-prompts-")  # noqa: SIM115
        self._pending = bytearray()
        self._ends = array("Q")  # of text, answer and solution in turn
        self._written = 0

    def __len__(self) -> int:
        return len(self._ends) // _PARTS

    def append(self, text: str, answer: str, solution: str = "") -> None:
        for part in (text, answer, solution):
            self._pending += part.encode("utf-8", "surrogatepass")
            self._ends.append(self._written + len(self._pending))
        if len(self._pending) >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Make everything that was appended readable."""
        self._file.write(self._pending)
        self._file.flush()
        self._written += len(self._pending)
        self._pending.clear()

    def prompt(self, place: int) -> Prompt:
        text = self._part(place, 0)
        return Prompt(place, text, tuple(self.tokenize([text])[0]), self._part(place, 1))

    def solution(self, place: int) -> str:
        """The response to imitate; empty if the set has none."""
        return self._part(place, 2)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids, with the tokenizer's special tokens if the text has none; never two begin tokens."""
        found = self._tokenizer(texts, add_special_tokens=self._add_special_tokens)["input_ids"]
        begin = self._tokenizer.bos_token_id
        twice = [begin, begin] if begin is not None else None
        return [ids[1:] if ids[:2] == twice else ids for ids in found]

    def _part(self, place: int, part: int) -> str:
        number = _PARTS * place + part
        start, end = self._ends[number - 1] if number else 0, self._ends[number]
        return os.pread(self._file.fileno(), end - start, start).decode("utf-8", "surrogatepass")


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
