"""What each token adds to the text of a response, byte for byte, and the fingerprint of the vocabulary that it is of."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_MOST_KEPT = 1 << 20  # pairs of tokens, each with a text of a few bytes


class TokenTexts:
    """The texts of a tokenizer's tokens; what it has decoded once it keeps."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._known: dict[tuple[int | None, int], str] = {}

    def of(self, tokens: Sequence[int], *, after: int | None) -> list[str]:
        """What each token adds to the text, with the space that some tokenizers put between two tokens.

        Bytes that are not text by themselves, such as a part of a character, are kept as surrogates, as Python's
        `surrogateescape` does.

        Args:
            tokens: of the response, in order.
            after: the token before the first one; None if there is none.

        """
        if len(self._known) > _MOST_KEPT:
            self._known.clear()
        texts, known, previous = [], self._known, after
        for token in map(int, tokens):
            pair = (previous, token)
            text = known.get(pair)
            if text is None:
                text = known[pair] = self._text(previous, token)
            texts.append(text)
            previous = token
        return texts

    def _text(self, previous: int | None, token: int) -> str:
        alone = self._decode([token])
        text = alone
        if previous is not None:
            left, both = self._decode([previous]), self._decode([previous, token])
            text = both[len(left) :] if both.startswith(left) else alone
        if _NO_TEXT in alone:
            return self._with_bytes(token) or text
        return alone if _NO_TEXT in text else text  # else it comes from the previous token's bytes

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens))

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
