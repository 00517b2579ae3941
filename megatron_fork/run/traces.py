"""A few trajectories of a step with every token's entropy and whether it carried gradient, for the report.

Responses that were not trained on (of groups without signal, of evaluations) have no entropy, only what the engine and the
verifier returned.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from megatron_fork.analysis import Trace, mixture
from megatron_fork.distributed import collectives
from megatron_fork.experience import Batch, Demonstration, Trajectory
from megatron_fork.rewards import read_reference


def trace_records(
    shares: Sequence[Batch], tokenizer: PreTrainedTokenizerBase, *, step: int, count: int, group: collectives.Group
) -> list[dict[str, Any]]:
    """`count` trajectories of the step's shares over all data-parallel ranks, drawn with the step as seed, in batch order."""
    mine = [sequence.number for share in shares for sequence in share.sequences]
    everyone = sorted(number for numbers in collectives.gather_objects(mine, group) for number in numbers)
    chosen = set(random.Random(step).sample(everyone, min(count, len(everyone))))
    records = [record for share in shares for record in _records(share, chosen, tokenizer, step)]
    gathered = [record for each in collectives.gather_objects(records, group) for record in each]
    return sorted(gathered, key=lambda record: record["number"])


def _records(share: Batch, chosen: set[int], tokenizer: PreTrainedTokenizerBase, step: int) -> Iterator[dict[str, Any]]:
    assert share.entropy_t is not None and share.selected_t is not None and share.old_logprob_t is not None
    columns = zip(
        share.entropy_t.split(share.response_lengths),
        share.selected_t.split(share.response_lengths),
        share.old_logprob_t.split(share.response_lengths),
        strict=True,
    )
    for sequence, (entropy, selected, logprob) in zip(share.sequences, columns, strict=True):
        if sequence.number not in chosen or not isinstance(sequence, Trajectory):
            continue
        yield Trace(
            step=step,
            prompt=sequence.prompt.text,
            answer=str(read_reference(sequence.prompt.answer)),
            tokens=token_texts(tokenizer, sequence),
            entropy=entropy.tolist(),
            selected=selected.tolist(),
            logprob=logprob.tolist(),
            reward=sequence.reward,
            advantage=sequence.advantage,
            finish_reason=sequence.finish_reason,
            reason=sequence.reason,
            number=sequence.number,
        ).fields()


def response_records(
    responses: Sequence[Trajectory],
    tokenizer: PreTrainedTokenizerBase,
    *,
    step: int,
    count: int,
    kind: Literal["without_signal", "evaluation"],
) -> list[dict[str, Any]]:
    """At most `count` responses that were not trained on, right and wrong ones mixed, with the verifier's reasons."""
    few = mixture(responses, count, lambda response: response.reward > 0)
    return [_of_response(response, token_texts(tokenizer, response), step, kind).fields() for response in few]


def _of_response(response: Trajectory, tokens: list[str], step: int, kind: str) -> Trace:
    return Trace(
        step=step,
        prompt=response.prompt.text,
        answer=str(read_reference(response.prompt.answer)),
        tokens=tokens,
        entropy=[math.nan] * len(tokens),
        selected=[False] * len(tokens),
        logprob=list(response.rollout_logprob),
        reward=response.reward,
        advantage=None,
        finish_reason=response.finish_reason,
        reason=response.reason,
        kind=kind,
        number=response.number,
    )


def token_texts(tokenizer: PreTrainedTokenizerBase, sequence: Demonstration) -> list[str]:
    """What each response token adds to the text, with the space that some tokenizers put between two tokens.

    Bytes that are not text by themselves, such as a part of a character, are kept as surrogates, as Python's
    `surrogateescape` does.
    """
    before = [sequence.prompt.tokens[-1], *sequence.response[:-1]]
    texts = []
    for previous, token in zip(before, sequence.response, strict=True):
        left, both, alone = (tokenizer.decode(each) for each in ([previous], [previous, token], [token]))
        text = both[len(left) :] if both.startswith(left) else alone
        if _NO_TEXT in alone:
            text = _with_bytes(tokenizer, token) or text
        elif _NO_TEXT in text:  # it comes from the previous token's bytes
            text = alone
        texts.append(text)
    return texts


def _with_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> str | None:
    """The text of a token, its non-text bytes as surrogates; None if the vocabulary does not say what its bytes are."""
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if named := _NAMED_BYTE.fullmatch(piece):
        whole = bytes([int(named[1], 16)])
    elif set(piece) <= _BYTES.keys():
        whole = bytes(_BYTES[letter] for letter in piece)
    else:
        return None
    return whole.decode(errors="surrogateescape")


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level vocabularies use for bytes: printable ones as they are, the others from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_letters()
# How SentencePiece writes a byte that it has no piece for.
_NAMED_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NO_TEXT = "\ufffd"
