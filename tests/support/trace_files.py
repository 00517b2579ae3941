"""Trace files of made-up responses in the tokens of the reach task's tokenizer, and tiny models that have it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, PreTrainedModel

from megatron_fork.data.reach import build_tokenizer
from megatron_fork.traces import Origin, TokenTexts, TracedResponse, vocabulary_fingerprint, write_traces
from support.tiny_qwen3 import family_config, hugging_face_model

VOCABULARY = 135
TOKENIZER = build_tokenizer()
ORIGIN = Origin(model="made up", tokenizer=vocabulary_fingerprint(TOKENIZER), vocab_size=VOCABULARY, written_by="tests")


def made_up(count: int = 12, *, seed: int = 0, with_entropy: bool = True) -> list[TracedResponse]:
    """Four responses to each prompt, of 1 to 14 tokens, right and wrong ones and one that nothing judged."""
    generator, texts = np.random.default_rng(seed), TokenTexts(TOKENIZER)
    rows = []
    for number in range(count):
        prompt = np.random.default_rng([seed, number // 4]).integers(5, VOCABULARY, 4).tolist()
        tokens = generator.integers(5, 40, int(generator.integers(1, 15))).tolist()
        entropy = generator.gamma(0.4, 1.5, len(tokens)).astype(np.float32)
        rows.append(
            TracedResponse(
                *("made_up", f"{number // 4:016x}", TOKENIZER.decode(prompt), prompt, "7", number % 4),
                *(TOKENIZER.decode(tokens), tokens, "stop", "generated"),
                token_texts=texts.of(tokens, after=prompt[-1]),
                entropy=entropy.tolist() if with_entropy else None,
                reward=None if number == 5 else float(generator.random() < 0.5),
            )
        )
    return rows


def as_row(response: TracedResponse) -> dict[str, Any]:
    """What a reader of the file gets of a response: texts have no lone surrogates, which UTF-8 does not have."""
    found = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(response).items()}
    for name, value in found.items():
        if isinstance(value, str):
            found[name] = value.encode("utf-8", "replace").decode()
    texts = found["token_texts"]
    return {**found, "token_texts": texts and [text.encode("utf-8", "surrogateescape") for text in texts]}


def write_made_up(path: Path, rows: Sequence[TracedResponse] | None = None) -> Path:
    write_traces(path, made_up() if rows is None else rows, ORIGIN)
    return path


def save_model(
    folder: Path, *, family: str = "qwen3", scale: float = 1.0, weights: dict[str, torch.Tensor] | None = None
) -> PreTrainedModel:
    """A tiny model with its tokenizer; `scale` of its weights, or `weights` in their place, make another model of it."""
    if family == "gpt2":
        ends = {"bos_token_id": None, "eos_token_id": 1}
        config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=64, **ends)
        config.architectures = ["GPT2LMHeadModel"]
    else:
        config = family_config(family, vocab_size=VOCABULARY, tie_word_embeddings=True, eos_token_id=1, pad_token_id=0)
    model = hugging_face_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= scale
        for name, tensor in (weights or {}).items():
            model.get_parameter(name).copy_(tensor)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return model
