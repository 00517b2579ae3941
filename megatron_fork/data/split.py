"""Training and held-out prompts, apart by question: a file may ask one many times, and none is both trained on and tested."""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from array import array

# Words and signs; a point or mark is one only where something follows it at once, as in 1.5.
TOKEN = re.compile(r"\w+|[^\w\s$.,;:?!]|[.,;:?!](?=[^\s$])")


def question_key(question: str) -> int:
    """64 bits of a question; case, spacing, dollars and the sentence's punctuation do not count."""
    text = question if question.isascii() else unicodedata.normalize("NFKC", question)
    tokens = "\x1f".join(TOKEN.findall(text.casefold()))
    digest = hashlib.blake2b(tokens.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def split_by_question(keys: array[int], held_out: int, seed: int) -> tuple[array[int], array[int]]:
    """(training, held-out) places of `keys`, which has the question of each place.

    Held out are `held_out` different questions, or all there are if they are fewer, one prompt of each; other prompts with
    these questions are in neither.
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
