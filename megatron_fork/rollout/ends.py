"""Which tokens end a response: one set for every engine, from all places that name one."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from megatron_fork.errors import ModelError


def stop_tokens_of(named: Mapping[str, object], vocabulary: int) -> tuple[int, ...]:
    """Every token that any place names, each once, in the order of the places.

    Args:
        named: by the place that names it, an id, several, or None where it names none.
        vocabulary: the model's; ids lie below.

    Raises:
        ModelError: a value that is no token of the model, or no token at all.

    """
    found: dict[int, None] = {}
    for place, value in named.items():
        for token in value if isinstance(value, list | tuple) else [] if value is None else [value]:
            if type(token) is not int or not 0 <= token < vocabulary:
                raise ModelError(
                    f"{place} is {value!r}: {token!r} is no token of a vocabulary of {vocabulary}",
                    hint="give token ids below the model's vocab_size, or remove the field",
                )
            found[token] = None
    if not found:
        raise ModelError(
            "no token ends a response: neither the tokenizer nor the model names an end",
            hint="set rollout.stop_tokens to the ids that do",
        )
    return tuple(found)


def ends_in_words(tokens: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokens with their text, as `151645 <|im_end|>, 151643 <|endoftext|>`."""
    texts = tokenizer.convert_ids_to_tokens(list(tokens))
    return ", ".join(f"{token} {text or '(not in the tokenizer)'}" for token, text in zip(tokens, texts, strict=True))
