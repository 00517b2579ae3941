"""A step's responses in memory, on their way to another rank, and as a batch: compact arrays against tuples of Python numbers.

    python benchmarks/trajectories.py --out benchmarks/results/trajectories.json

resident    bytes a response token that a process grows by when it receives the step
broadcast   seconds until a second gloo rank has what the first one drew, pickled and back
batch       seconds to make a `Batch` of them

The floor sends the same numbers as two tensors. Each kind runs in two processes of its own; `--rounds` times in turn, medians.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import random
import shlex
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from megatron_fork.distributed import collectives
from megatron_fork.experience import Batch, Prompt, Trajectory, logprob_array, token_array

KINDS = ("tuples", "arrays", "floor")
VOCABULARY = 151_936
MAKERS = {"tuples": (tuple, tuple), "arrays": (token_array, logprob_array)}


def step_of(kind: str, responses: int, tokens: int) -> list[Trajectory]:
    """What an engine's answers become; the numbers are parsed from text, as a server's are, and so are objects of their own."""
    generator, (of_tokens, of_logprobs) = random.Random(0), MAKERS[kind]
    prompt = Prompt(0, "", tuple(range(200)), "")
    made = []
    for number in range(responses):
        text = json.dumps([[generator.randrange(VOCABULARY), -generator.random()] for _ in range(tokens)])
        pairs = json.loads(text)
        response, logprob = of_tokens(pair[0] for pair in pairs), of_logprobs(pair[1] for pair in pairs)
        made.append(Trajectory(number, prompt, response, logprob, "length", 0))
    return made


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def as_rank(rank: int, kind: str, responses: int, tokens: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    sent: Any = None
    if rank == 0:
        sent = torch.zeros(2, responses * tokens) if kind == "floor" else step_of(kind, responses, tokens)
    elif kind == "floor":
        sent = torch.zeros(2, responses * tokens)
    dist.barrier()
    before, began = resident(), time.perf_counter()
    got = collectives.broadcast(sent, 0, dist.group.WORLD) if kind == "floor" else None
    if kind != "floor":
        got = collectives.broadcast_object(sent, dist.group.WORLD)
    result = {"broadcast": time.perf_counter() - began}
    if rank == 1 and kind != "floor":
        result["resident"] = (resident() - before) / (responses * tokens)
        began = time.perf_counter()
        Batch.of_trajectories(got)
        result["batch"] = time.perf_counter() - began
    dist.barrier()
    dist.destroy_process_group()
    if rank == 1:
        Path(folder, "result.json").write_text(json.dumps(result))


def measure(kind: str, responses: int, tokens: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(as_rank, (kind, responses, tokens, folder), nprocs=2)
        result: dict[str, float] = json.loads(Path(folder, "result.json").read_text())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=15_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rounds = [{kind: measure(kind, options.responses, options.tokens) for kind in KINDS} for _ in range(options.rounds)]
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "responses": options.responses,
        "tokens": options.tokens,
        "kinds": {
            kind: {name: median(each[kind][name] for each in rounds) for name in rounds[0][kind]} for kind in KINDS
        },
        "rounds": rounds,
    }
    print(json.dumps(result["kinds"], indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
