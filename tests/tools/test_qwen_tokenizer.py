"""The tokenizer built from ranks cuts every text as the ranks say, byte for byte; with the published ranks it is Qwen3's.

The ranks lie in the PyPI package dashscope (`pip install --no-deps dashscope`); without it the small set below stands for them.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import unicodedata
from pathlib import Path

import pytest
import regex
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from megatron_fork.data.templates import find_template

TOOLS = Path(__file__).parent.parent.parent / "tools"
sys.path.append(str(TOOLS))
from build_qwen_tokenizer import ORDINARY, PATTERN, RANKS, SPECIAL, build, merged, merges_of, read_ranks, write_folder  # noqa: E402


def published() -> dict[bytes, int]:
    found = importlib.util.find_spec("dashscope")
    if found is None or not found.submodule_search_locations:
        pytest.skip("dashscope is not installed")
    return read_ranks(Path(found.submodule_search_locations[0]) / "resources" / "qwen.tiktoken")


def small() -> dict[bytes, int]:
    """All bytes, then what a few words are merged from."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for word in (b"th", b"the", b" the", b"in", b"ing", b" th", b"an", b"and", "é".encode(), b"  ", b"er", b"the er"):
        ranks.setdefault(word, len(ranks))
    ranks.pop(b"the er", None)
    ranks.pop(b" the", None)
    return {token: place for place, token in enumerate(ranks)}


def texts() -> list[str]:
    generator = random.Random(0)
    alphabets = [
        (32, 127),
        (0x4E00, 0x9FFF),
        (0x400, 0x4FF),
        (0x1F600, 0x1F64F),
        (0x600, 0x6FF),
        (0x300, 0x30F),
        (9, 14),
    ]
    made = [
        "".join(chr(generator.randrange(*generator.choice(alphabets))) for _ in range(generator.randrange(1, 60)))
        for _ in range(400)
    ]
    return [
        *made,
        "2026 12345 don't I'LL  x\n\n\n  y",
        "the thing and the other \u00e9 e\u0301 \ufb01",
        " \n \n",
        r"$\frac{1}{2}$",
    ]


def reference(text: str, ranks: dict[bytes, int]) -> list[int]:
    """By the definition: pieces of the pattern, merged by rank."""
    pieces = regex.findall(PATTERN, unicodedata.normalize("NFC", text))
    return [ranks[part] for piece in pieces for part in merged(piece.encode(), ranks, below=1 << 60)]


def check(tokenizer: Tokenizer, ranks: dict[bytes, int]) -> None:
    for text in texts():
        ids = tokenizer.encode(text).ids
        assert ids == reference(text, ranks), text
        assert tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_small_ranks() -> None:
    ranks = small()
    assert len(merges_of(ranks)) == len(ranks) - 256
    check(build(ranks), ranks)


@pytest.mark.slow
def test_published_ranks(tmp_path: Path) -> None:
    ranks = published()
    assert len(ranks) == RANKS
    check(build(ranks), ranks)
    write_folder(build(ranks), tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == RANKS + len(SPECIAL) + len(ORDINARY)
    assert loaded.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>", "<think>"]) == [151643, 151645, 151667]
    assert (loaded.eos_token, loaded.pad_token) == ("<|im_end|>", "<|endoftext|>")
    for text in texts():
        assert loaded.encode(text) == reference(text, ranks)
    for thinks in ("", "_no_thinking"):
        made = [find_template(f"{name}{thinks}", loaded)("1+1?", {}, "here") for name in ("chat", "qwen3")]
        assert made[0] == made[1]


def test_other_ranks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(b"AA== 0\n")
    with pytest.raises(SystemExit, match="SHA-256"):
        read_ranks(tmp_path / "qwen.tiktoken")
