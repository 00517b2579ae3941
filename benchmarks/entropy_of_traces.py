"""Time and memory of `megatron-fork analyze entropy` on made-up traces of a million tokens: the whole process.

python benchmarks/entropy_of_traces.py [--tokens 1000000] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megatron_fork.traces import Origin, TracedResponse, write_traces

VOCABULARY = 151_936
LENGTH = 8_000
"""Mean tokens of a response."""


def responses(tokens: int) -> Iterator[TracedResponse]:
    """Half of the tokens all but decided, the others' entropies spread over decades; ids as frequent as words are."""
    generator, number = np.random.default_rng(0), 0
    while tokens > 0:
        length = min(tokens, int(generator.integers(LENGTH // 2, LENGTH * 3 // 2)))
        ids = np.minimum(generator.zipf(1.2, length), VOCABULARY - 1).astype(np.int32)
        entropy = np.where(generator.random(length) < 0.5, 1e-3, generator.gamma(0.4, 1.2, length)).astype(np.float32)
        yield TracedResponse(
            *(
                "made_up",
                f"{number // 8:016x}",
                "a question",
                [1, 2, 3],
                "42",
                number % 8,
                "text",
                ids,
                "stop",
                "trained",
            ),  # type: ignore[arg-type]
            token_texts=[f" w{token}" for token in ids.tolist()],
            entropy=entropy,  # type: ignore[arg-type]
            logprob=-entropy,
            selected=entropy > 0.6,  # type: ignore[arg-type]
            weight_version=np.zeros(length, np.int32),  # type: ignore[arg-type]
            reward=float(generator.random() < 0.5),
            step=1,
            number=number,
        )
        tokens, number = tokens - length, number + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        traces = Path(folder) / "traces.parquet"
        write_traces(traces, responses(asked.tokens), Origin(tokenizer="made up", vocab_size=VOCABULARY))
        words = [sys.executable, "-m", "megatron_fork", "analyze", "entropy", str(traces), f"--out={folder}/figures"]
        began = time.perf_counter()
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status:
            raise SystemExit(f"exit status {status}: {output}")
        result = {
            "tokens": asked.tokens,
            "file_bytes_per_token": traces.stat().st_size / asked.tokens,
            "seconds": seconds,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_mib": usage.ru_maxrss / 1024,
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
        }
    text = json.dumps(result, indent=2)
    print(output, text, sep="\n")
    if asked.out:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
