"""Prompt files, what is read from them, and a tokenizer of bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from megatron_fork.data import PromptSource


def bytes_tokenizer(*special: str, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token a byte, and the given special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    made.add_special_tokens({"additional_special_tokens": list(special)})
    made.chat_template = chat_template
    return made


TOKENIZER = bytes_tokenizer("<|im_start|>", "<|im_end|>")


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def everything(source: PromptSource) -> list[Any]:
    return sorted([*source.training, *source.held_out], key=lambda prompt: prompt.index)
