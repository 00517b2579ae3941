"""Splits prompts into training and held-out ones by question: a file may repeat a question, which must not be in both parts."""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from array import array

# Words and signs; punctuation counts only if something follows it directly, as in 1.5.
TOKEN = re.compile(r"\w+|[^\w\s$.,;:?!]|[.,;:?!](?=[^\s$])")


def question_key(question: str) -> int:
    """A 64-bit hash of a question; case, spacing, dollar signs and the sentence's punctuation do not count."""
    text = question if question.isascii() else unicodedata.normalize("NFKC", question)
    tokens = "\x1f".join(TOKEN.findall(text.casefold()))
    digest = hashlib.blake2b(tokens.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def split_by_question(keys: array[int], held_out: int, seed: int) -> tuple[array[int], array[int]]:
    """(training, held-out) places of `keys`, the keys of the questions.

    One prompt of each of `held_out` different questions is held out, or of all questions if there are fewer; other prompts
    with these questions are in neither part.
    """
    places = array("L", range(len(keys)))
    random.Random(f"{seed}/held-out").shuffle(places)
    asked: set[int] = set()
    chosen: array[int] = array("L")
    for place in places:
        if len(chosen) == held_out:
            break
        if keys[place] not in asked:
            asked.add(keys[place])
            chosen.append(place)
    return array("L", (place for place in places if keys[place] not in asked)), chosen
