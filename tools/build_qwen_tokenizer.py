r"""Build the Qwen3 tokenizer without a model hub, from the ranks that the PyPI package `dashscope` carries.

    pip download --no-deps dashscope -d wheels
    python tools/build_qwen_tokenizer.py wheels/dashscope-*.whl OUT_FOLDER

The ranks (`qwen.tiktoken`, 151,643 byte sequences) are those of Qwen's own tokenizer; a Hugging Face tokenizer wants merges,
which follow from them: the merge that makes a token is the last one when its bytes are merged by rank. OUT_FOLDER then loads
with `AutoTokenizer.from_pretrained` and has Qwen3's special tokens and a chat template for plain conversations.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import zipfile
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

RANKS = 151_643
RANKS_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# In the order of their ids, which follow the ranks.
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> "
    "<|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
ORDINARY = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think>"
).split()
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def read_ranks(source: Path) -> dict[bytes, int]:
    """Byte sequence -> rank, from a `qwen.tiktoken` file or a wheel that has one; raises SystemExit on anything else."""
    if source.suffix == ".whl":
        with zipfile.ZipFile(source) as wheel:
            names = [name for name in wheel.namelist() if name.endswith("qwen.tiktoken")]
            if not names:
                raise SystemExit(f"error: {source} has no qwen.tiktoken")
            content = wheel.read(names[0])
    else:
        content = source.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != RANKS_SHA256:
        raise SystemExit(f"error: {source} has ranks of SHA-256 {found}, not {RANKS_SHA256}")
    pairs = (line.split() for line in content.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that makes each token of more than one byte, in the order of the ranks."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = merged(token, ranks, below=rank)
            if len(parts) != 2:
                raise SystemExit(f"error: token {rank} comes of {len(parts)} parts")
            merges.append((parts[0], parts[1]))
    return merges


def merged(token: bytes, ranks: dict[bytes, int], *, below: int) -> list[bytes]:
    """`token` after all merges of a rank lower than `below`."""
    parts = [bytes([byte]) for byte in token]
    while True:
        candidates = [(ranks.get(a + b, below), place) for place, (a, b) in enumerate(pairwise(parts))]
        rank, place = min(candidates, default=(below, 0))
        if rank >= below:
            return parts
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def build(ranks: dict[bytes, int]) -> Tokenizer:
    letters = byte_letters()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocabulary = {spelled(token): rank for token, rank in ranks.items()}
    merges = [(spelled(left), spelled(right)) for left, right in merges_of(ranks)]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens(
        [AddedToken(text, special=text in SPECIAL, normalized=False) for text in (*SPECIAL, *ORDINARY)]
    )
    return tokenizer


def write_folder(tokenizer: Tokenizer, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "split_special_tokens": False,
        "model_max_length": 131072,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the dashscope wheel, or its qwen.tiktoken")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if not arguments.source.is_file():
        raise SystemExit(f"error: {arguments.source} is not a file")
    ranks = read_ranks(arguments.source)
    if sorted(ranks.values()) != list(range(RANKS)):
        raise SystemExit(f"error: {arguments.source} has {len(ranks)} ranks, not {RANKS} without a gap")
    write_folder(build(ranks), arguments.out)
    print(f"{arguments.out}: {len(ranks):,} ranks, {len(SPECIAL) + len(ORDINARY)} added tokens")


if __name__ == "__main__":
    main()
