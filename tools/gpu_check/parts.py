"""The table of parts: what each runs, what it needs, how much of the time it may have, and who reads its files."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_check import commands, readers
from gpu_check.commands import Command, by_size, full_size
from gpu_check.errors import CheckError
from gpu_check.figures import Reading

# Modules that this project's program imports, and its tests.
PROGRAM = (
    *("torch", "numpy", "megatron.core", "transformers", "tokenizers", "safetensors", "psutil"),
    *("pydantic", "annotated_types", "omegaconf", "yaml", "typer", "rich", "jinja2", "httpx"),
)
TESTS = (*PROGRAM, "pytest", "hypothesis")
TRANSFORMER_ENGINE = "transformer_engine.pytorch"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part.

    `share` of the time is relative to the other parts; `least` and `most` are seconds on a GPU; `gibibytes` must be free on it.
    What is `timed` is not measured on a GPU that others use.
    """

    name: str
    what: str
    command: Command
    read: Callable[[Path], Reading]
    share: float
    least: float
    most: float = 600.0
    needs: Sequence[str] = PROGRAM
    gibibytes: float = 2.0
    timed: bool = True


def _quickstart(precision: str) -> Part:
    words = f"--precision {precision}"
    return Part(
        name=f"quickstart-{precision}",
        what=f"a run in {precision} that is killed and resumed",
        command=by_size("killed_and_resumed.py", words, f"{words} --small"),
        read=readers.resumed,
        share=55,
        least=25,
        timed=False,
    )


def _head(shape: str, width: int, gibibytes: float) -> Part:
    return Part(
        name=f"head-{shape}",
        what=f"LM head of Qwen3-{shape.upper()} against its floor and peers",
        command=by_size(
            "head_shapes.py",
            f"--width {width} --tokens 8192 32768 --rounds 3",
            f"--width {width // 128} --tokens 64 128 --vocabulary 512 --dtype fp32 --rounds 1",
        ),
        read=readers.head,
        share=50,
        least=20,
        gibibytes=gibibytes,
    )


def _size(shape: str, what: str, words: str, *, share: float, gibibytes: float) -> Part:
    return Part(
        name=f"size-{shape}",
        what=what,
        command=full_size(f"{words} --ratio 0.2 --rounds 2"),
        read=readers.full_size,
        share=share,
        least=20,
        gibibytes=gibibytes,
    )


PARTS = (
    Part(
        name="kernels",
        what="Triton kernels compiled by several processes at a time, and tuned",
        command=by_size("warm_up.py", "", "--first 2 --workers 2 --parts 1"),
        read=readers.warm_up,
        share=30,
        least=10,
        needs=("torch", "triton", "pydantic", "megatron.core"),
    ),
    Part(
        name="tests",
        what="every test with a form for a GPU",
        command=commands.tests,
        read=readers.tests,
        share=75,
        least=25,
        needs=TESTS,
        gibibytes=8.0,
        timed=False,
    ),
    _quickstart("fp32"),
    _quickstart("bf16"),
    _head("8b", 4096, gibibytes=16.0),
    _head("32b", 5120, gibibytes=20.0),
    _size(
        "0.6b",
        "Qwen3-0.6B with Adam, nothing recomputed",
        "--shape 0.6b --response 8192 29696 --grain 8192 --limit 131072",
        share=40,
        gibibytes=30.0,
    ),
    _size(
        "8b",
        "Qwen3-8B, all recomputed, no optimizer",
        "--shape 8b --optimizer none --recompute full --response 8192 --grain 16384 --limit 65536",
        share=55,
        gibibytes=54.0,
    ),
    _size(
        "32b",
        "four layers of Qwen3-32B and its LM head, no optimizer",
        "--shape 32b-4-layers --optimizer none --response 8192 --limit 0",
        share=25,
        gibibytes=36.0,
    ),
    Part(
        name="selection",
        what="the exact k-th largest of 1e8 values",
        command=by_size(
            "selection.py",
            "--values 100000000 --ranks --responses --rounds 3",
            "--values 100000 --ranks --responses --rounds 1",
        ),
        read=readers.selection,
        share=12,
        least=8,
        gibibytes=4.0,
    ),
    Part(
        name="rollout",
        what="weights to the embedded engine, and responses drawn by it",
        command=by_size("hand_over.py", "--shape 0.6b", "--shape tiny --requests 4 --tokens 8"),
        read=readers.hand_over,
        share=25,
        least=15,
        gibibytes=8.0,
    ),
    Part(
        name="transformer-engine",
        what="Transformer Engine against local layers and Hugging Face",
        command=commands.transformer_engine_tests,
        read=readers.tests,
        share=45,
        least=20,
        needs=(*TESTS, TRANSFORMER_ENGINE),
        gibibytes=8.0,
        timed=False,
    ),
)


def chosen(names: Sequence[str]) -> list[Part]:
    """The parts that are named, in the table's order; `head` names all that begin so. All where none is named."""
    groups = {part.name: {part.name, part.name.partition("-")[0]} for part in PARTS}
    known = set().union(*groups.values())
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f"did you mean {near[0]}? " if near else ""
            every = ", ".join(part.name for part in PARTS)
            raise CheckError(f"there is no part {name!r}", hint=f"{meant}the parts are {every}")
    return [part for part in PARTS if not names or groups[part.name] & set(names)]
