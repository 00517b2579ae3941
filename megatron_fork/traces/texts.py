"""What each token adds to the text of a response, byte for byte, and the fingerprint of the vocabulary that it is of."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

_MOST_KEPT = 1 << 20  # pairs of tokens, each with a text of a few bytes
# A pair is one number: the token before, from 1, and 0 for none; then the token.
_BITS = 31
_MOST_TOKEN = (1 << _BITS) - 1


class TokenTexts:
    """The texts of a tokenizer's tokens; what it has decoded once it keeps."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._known: dict[int, str] = {}
        self._alone: dict[int, str] = {}

    def of(self, tokens: Sequence[int], *, after: int | None) -> list[str]:
        """What each token adds to the text, with the space that some tokenizers put between two tokens.

        Bytes that are not text by themselves, such as a part of a character, are kept as surrogates, as Python's
        `surrogateescape` does.

        Args:
            tokens: of the response, in order.
            after: the token before the first one; None if there is none.

        """
        return self.of_all([(tokens, after)])[0]

    def of_all(self, responses: Iterable[tuple[Sequence[int], int | None]]) -> list[list[str]]:
        """As `of`, of many responses at once: a call, and a number of Python's, costs more than a token."""
        both = list(responses)
        sequences = [tokens for tokens, _ in both]
        ends = np.cumsum([0, *map(len, sequences)])
        following = np.concatenate([np.zeros(0, np.int64), *sequences]).astype(np.int64)
        before = np.zeros(len(following) + 1, np.int64)
        before[1:] = following + 1
        before[ends[:-1]] = [0 if after is None else after + 1 for _, after in both]  # of empty ones the last is kept
        pairs, places = np.unique((before[:-1] << _BITS) | following, return_inverse=True)
        numbers = pairs.tolist()
        self._decode_pairs(numbers)
        texts = np.empty(len(numbers), dtype=object)
        texts[:] = [self._known[pair] for pair in numbers]
        flat = texts[places].tolist()
        return [flat[start:end] for start, end in pairwise(ends.tolist())]

    def _decode_pairs(self, pairs: Sequence[int]) -> None:
        """Decode all that is new of `pairs` in two calls: a call costs more than a decoding."""
        if len(self._known) > _MOST_KEPT:
            self._known.clear()
            self._alone.clear()
        new = [(pair, (pair >> _BITS) - 1, pair & _MOST_TOKEN) for pair in pairs if pair not in self._known]
        alone = {number for _, *both in new for number in both if number >= 0}.difference(self._alone)
        self._alone.update(zip(alone, self._decode([(number,) for number in alone]), strict=True))
        following = [(previous, token) for _, previous, token in new if previous >= 0]
        both = dict(zip(following, self._decode(following), strict=True))
        for pair, previous, token in new:
            together = None if previous < 0 else (self._alone[previous], both[previous, token])
            self._known[pair] = self._text(token, together)

    def _text(self, token: int, together: tuple[str, str] | None) -> str:
        """What a token adds; `together`: the texts of the token before it, and of both."""
        alone = text = self._alone[token]
        if together is not None:
            left, both = together
            text = both[len(left) :] if both.startswith(left) else alone
        if _NO_TEXT in alone:
            return self._with_bytes(token) or text
        return alone if _NO_TEXT in text else text  # else it comes from the previous token's bytes

    def _decode(self, sequences: Sequence[tuple[int, ...]]) -> list[str]:
        """The texts of sequences of one length."""
        return self.tokenizer.batch_decode(np.asarray(sequences)) if sequences else []

    def _with_bytes(self, token: int) -> str | None:
        """The text of a token, its non-text bytes as surrogates; None if the vocabulary does not say what its bytes are."""
        piece = str(self.tokenizer.convert_ids_to_tokens(token))
        if named := _NAMED_BYTE.fullmatch(piece):
            whole = bytes([int(named[1], 16)])
        elif set(piece) <= _BYTES.keys():
            whole = bytes(_BYTES[letter] for letter in piece)
        else:
            return None
        return whole.decode(errors="surrogateescape")


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits of which token has which id; equal for tokenizers whose tokens can be compared."""
    digest = hashlib.blake2b(digest_size=8)
    for piece, number in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{piece}\0{number}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level vocabularies use for bytes: printable ones as they are, the others from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_letters()
# How SentencePiece writes a byte that it has no piece for.
_NAMED_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NO_TEXT = "\ufffd"
