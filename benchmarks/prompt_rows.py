r"""What reading rows through the library `datasets` costs beside `megatron_fork.data`, and what each makes of some answers.

    python -m venv FOLDER && FOLDER/bin/pip install datasets
    python benchmarks/prompt_rows.py --datasets FOLDER/bin/python --out benchmarks/results/prompt_rows.json

Both go through every row once, of the same files, each in a fresh process: `ours` is `read_rows`, on the interpreter that runs
this; `datasets` is `load_dataset` on the other one, the first time, when it writes its cache of Arrow files, and again, when it
finds it. `seconds_to_import` and `seconds` are of the process, `started_mib` the most memory that it held after the import,
`resident_mib` until the end, mapped pages included, `disk_mib` what is left on the disk. `example` has one row.
`answers` are rows of their own files: the answer as it was written, and as it is read.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from prompt_files import write

PROJECT = Path(__file__).parents[1]
# Said on both sides in the same way; `LOAD` and `VERSIONS` are put in.
READER = """
import json, re, sys, time
def held(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
path, began = sys.argv[1], time.perf_counter()
{load}
imported, started = time.perf_counter() - began, held()
began = time.perf_counter()
rows, characters, answer = 0, 0, None
for row in read(path):
    rows, answer = rows + 1, row["answer"]
    characters += len(row["prompt"])
seconds = time.perf_counter() - began
found = {{"rows": rows, "characters": characters, "last_answer": repr(answer), "seconds_to_import": imported}}
found |= {{"started_mib": started, "seconds": seconds, "resident_mib": held(), "versions": versions()}}
print(json.dumps(found))
"""
OURS = """
from pathlib import Path
from megatron_fork.data import DataConfig
from megatron_fork.data.rows import read_rows
def read(path): return (row for _, row in read_rows(Path(path)))
def versions(): return {"pyarrow": __import__("importlib.metadata").metadata.version("pyarrow")}
"""
THEIRS = """
from datasets import load_dataset
KINDS = {"jsonl": "json", "csv": "csv", "parquet": "parquet"}
def read(path): return load_dataset(KINDS[path.rsplit(".", 1)[1]], data_files=path, split="train")
def versions(): return {name: __import__("importlib.metadata").metadata.version(name) for name in ("datasets", "pyarrow")}
"""


# What a file may hold as an answer: a text, but for the last.
ANSWERS = {
    "date.jsonl": '{"prompt": "When?", "answer": "2024-01-02"}\n',
    "zeros.csv": "prompt,answer\nWhich agent?,007\n",
    "decimal.csv": "prompt,answer\nHow much?,1.50\n",
    "sodium.csv": "prompt,answer\nWhich salt?,NA\n",
    "large.jsonl": '{"prompt": "How many?", "answer": 1000000000000000000000000000007}\n',
}


def measured(python: str, load: str, path: Path, cache: Path) -> dict[str, Any]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT) if load is OURS else "",
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    code = READER.format(load=load)
    done = subprocess.run([python, "-c", code, str(path)], capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) if cache.exists() else 0
    return {**found, "disk_mib": size / 2**20}


def compared(python: str, path: Path, cache: Path) -> dict[str, Any]:
    rows = {
        "ours": measured(sys.executable, OURS, path, cache),
        "datasets_first": measured(python, THEIRS, path, cache),
        "datasets_again": measured(python, THEIRS, path, cache),
    }
    seen = {(each["rows"], each["characters"]) for each in rows.values()}
    assert len(seen) == 1, f"not the same rows: {seen}"
    for name, each in rows.items():
        print(path.name, name, json.dumps(each), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", required=True, help="a Python that has the library `datasets`")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument(
        "--formats", nargs="+", choices=("jsonl", "parquet", "csv"), default=("jsonl", "parquet", "csv")
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "command": "python benchmarks/prompt_rows.py --datasets PYTHON "
        + shlex.join(word for word in sys.argv[1:] if word not in ("--datasets", arguments.datasets)),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {platform.python_version()}",
        "rows": arguments.rows,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = folder / "example.jsonl"
        write(one, 1)
        record["example"] = compared(arguments.datasets, one, folder / "cache of one")
        for suffix in arguments.formats:
            path = folder / f"rows.{suffix}"
            write(path, arguments.rows)
            found = compared(arguments.datasets, path, folder / f"cache of {suffix}")
            record[suffix] = {"file_mib": path.stat().st_size / 2**20, **found}
        record["answers"] = {}
        for file, text in ANSWERS.items():
            (folder / file).write_text(text)
            found = compared(arguments.datasets, folder / file, folder / f"cache of {file}")
            ours, theirs = found["ours"]["last_answer"], found["datasets_first"]["last_answer"]
            record["answers"][file] = {"ours": ours, "datasets": theirs}
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
