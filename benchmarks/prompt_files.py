r"""Memory and time of loading a prompt file of a million rows, by format, each in a process of its own.

    python benchmarks/prompt_files.py --out benchmarks/results/prompt_files.json

The rows are generated: a question of about 200 characters and an answer, all different. `rest` is the process before loading
(interpreter, libraries, tokenizer), `peak` the most it held while loading, `after` what it holds afterwards, in MiB of resident
memory; `whole_file_in_lists` reads the same JSON lines into a list of rows, which is what streaming saves.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FORMATS = ("jsonl", "parquet", "csv")


def write(path: Path, rows: int) -> None:
    import csv

    import pyarrow
    import pyarrow.parquet

    filler = "a train leaves the station and another one arrives later, both at constant speed along the same line; "
    made = (
        {"prompt": f"Problem {n}: {filler * 2} how far is town {n * 7}?", "answer": str(n * 3)} for n in range(rows)
    )
    if path.suffix == ".jsonl":
        with path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in made)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "answer"])
            writer.writeheader()
            writer.writerows(made)
    else:
        schema = pyarrow.schema([("prompt", pyarrow.string()), ("answer", pyarrow.string())])
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            while batch := list(itertools.islice(made, 50_000)):
                writer.write_table(pyarrow.Table.from_pylist(batch, schema))


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def most_mib() -> float:
    """Of this program alone: what getrusage counts includes the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def load(path: Path) -> dict[str, Any]:
    """In a fresh process: one token a word, the cheapest tokenizer there is, so that time is mostly the reading."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from megatron_fork.data import DataConfig, load_prompts

    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")
    rest, began = resident_mib(), time.perf_counter()
    source = load_prompts(DataConfig(source=str(path), duplicates="keep"), wrapped)
    seconds = time.perf_counter() - began
    peak, after = most_mib(), resident_mib()
    began = time.perf_counter()
    drawn = source.draw(512, start=12_345, seed=0)
    return {
        "prompts": source.counts.kept,
        "seconds": seconds,
        "rest": rest,
        "peak": peak,
        "after": after,
        "seconds_to_draw_512": time.perf_counter() - began,
        "first_drawn": drawn[0].index,
    }


def load_whole(path: Path) -> dict[str, Any]:
    rest = resident_mib()
    rows = [json.loads(line) for line in path.open()]
    return {"prompts": len(rows), "rest": rest, "after": resident_mib()}


def in_process(function: str, path: Path) -> dict[str, Any]:
    code = f"import sys, json, pathlib; sys.path.insert(0, {str(Path(__file__).parent)!r}); import prompt_files; "
    code += f"print(json.dumps(prompt_files.{function}(pathlib.Path({str(path)!r}))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.python_version()}",
        "rows": arguments.rows,
    }
    with tempfile.TemporaryDirectory() as folder:
        for suffix in arguments.formats:
            path = Path(folder) / f"rows.{suffix}"
            write(path, arguments.rows)
            record[suffix] = {"file_mib": path.stat().st_size / 2**20, **in_process("load", path)}
            print(suffix, json.dumps(record[suffix]), flush=True)
            if suffix == "jsonl":
                record["whole_file_in_lists"] = in_process("load_whole", path)
                print(json.dumps(record["whole_file_in_lists"]), flush=True)
            path.unlink()
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
