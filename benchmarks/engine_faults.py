r"""What becomes of a run whose server answers wrongly, fault by fault, with this package and with another checkout.

    git worktree add --detach /elsewhere COMMIT
    python benchmarks/engine_faults.py --before /elsewhere --out benchmarks/results/engine_faults.json

Each fault is made by a stand-in server (stand_in_engine.py and server_faults.py of tests/support/) in a process of its own. The
real client asks it for two responses of up to 64 tokens, with `attempts=2`, `idle_seconds=1`, `health_timeout_seconds=1` and
`patience_seconds=4`. A client that has not ended after 15 s, or that has grown by a GiB, is killed.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent.parent
sys.path[:0] = [str(HERE / "tests")]

SECONDS = 15.0
BYTES = 1 << 30
ENGINES = ("vllm", "sglang")


def outcome_of(engine: str, url: str) -> dict[str, str]:
    """What two requests come to, and the words for it."""
    import torch
    from transformers import Qwen3Config

    from megatron_fork.errors import MegatronForkError
    from megatron_fork.rollout import RemoteConfig, RemoteEngine, Request, RolloutConfig

    limits = RemoteConfig(
        attempts=2,
        idle_seconds=1.0,
        patience_seconds=4.0,
        control_seconds=2.0,
        health_seconds=0.5,
        health_timeout_seconds=1.0,
        stream_interval=8,
    )
    config = RolloutConfig(engine=engine, servers=[url], remote=limits)
    asked = [Request(number, (5, 6, 7, 8, 9, 10), number + 3, 1.0, 64) for number in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        made = RemoteEngine(config, Qwen3Config(vocab_size=135), stop_tokens=(1,), folder=Path(folder), world=None)
        try:
            made.update_weights([("weight", torch.zeros(2))], 0)
            completions = list(made.generate(asked))
        except MegatronForkError as error:
            return {"outcome": "ends by a line", "words": error.message}
        except Exception as error:
            return {"outcome": "traceback", "words": f"{type(error).__name__}: {error}"[:200]}
    wrong = [each for each in completions if not can_be(each)]
    if wrong:
        each = wrong[0]
        return {
            "outcome": "handed to training",
            "words": f"{each.finish_reason}, tokens {list(each.tokens)[:5]}, {list(each.logprob)[:3]}",
        }
    return {"outcome": "goes on", "words": f"{len(completions)} responses that can be"}


def can_be(completion: Any) -> bool:
    tokens, ends = list(completion.tokens), completion.finish_reason == "stop"
    return (
        0 < len(tokens) == len(completion.logprob) <= 64
        and all(math.isfinite(value) and -1000 < value <= 1e-3 for value in completion.logprob)
        and 1 not in tokens[:-1]
        and (tokens[-1] == 1 if ends else len(tokens) == 64)
    )


def serve_clients() -> None:
    """In the package under test: a fork for each line of `engine url`, which has imported all."""
    from transformers import Qwen3Config  # noqa: F401

    from megatron_fork.rollout import RemoteEngine  # noqa: F401, all that a client imports

    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            Path("/proc/self/clear_refs").write_text("5")
            found = outcome_of(*line.split())
            os.write(write, json.dumps(found).encode())
            os._exit(0)
        os.close(write)
        print(json.dumps(watched(child, read)), flush=True)


def watched(child: int, read: int) -> dict[str, Any]:
    """The child's outcome, its seconds, and by how much it grew; it is killed beyond the limits."""
    began, most, first, ended = time.monotonic(), 0, 0, False
    outcome = {"outcome": "without end", "words": f"killed after {SECONDS:.0f} s"}
    while not ended and time.monotonic() - began < SECONDS:
        lines = Path(f"/proc/{child}/status").read_text().splitlines()
        sizes = [int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")]
        most = max([most, *sizes])
        first = first or most
        if most - first > BYTES:
            outcome = {"outcome": "without end", "words": "killed after it had grown by a GiB"}
            break
        time.sleep(0.02)
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    seconds = time.monotonic() - began
    if not ended:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(read) as told:
        text = told.read()
    outcome = json.loads(text) if text and ended else outcome
    return {**outcome, "seconds": round(seconds, 1), "mebibytes": round((most - first) / (1 << 20))}


def rows_of(package: Path) -> list[dict[str, Any]]:
    from support import server_faults
    from support.stand_in_engine import apart

    environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    client = subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", __file__, "--client"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert client.stdin is not None and client.stdout is not None
    rows = []
    names = ["nothing", *server_faults.ENDLESS, *server_faults.IMPOSSIBLE, *server_faults.CONTROL]
    for engine in ENGINES:
        for name in names:
            with apart(engine, name) as (url, asked):
                print(engine, url, file=client.stdin, flush=True)
                row = json.loads(client.stdout.readline()) | {"requests": asked()}
            row["words"] = row["words"].replace(url, "SERVER")
            rows.append({"engine": engine, "fault": name, **row})
            print(json.dumps(rows[-1]), flush=True)
    client.stdin.close()
    client.wait()
    return rows


def commit_of(package: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(package), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        serve_clients()
        return
    packages = ([arguments.before.resolve()] if arguments.before else []) + [HERE]
    rows = {commit_of(package): rows_of(package) for package in packages}
    record = {
        "command": "python benchmarks/engine_faults.py --before CHECKOUT",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, Linux {platform.release()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
        "outcomes": {
            commit: dict(collections.Counter(row["outcome"] for row in found)) for commit, found in rows.items()
        },
        "rows": rows,
    }
    print(json.dumps(record["outcomes"], indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
