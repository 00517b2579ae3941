"""How long new weights take to reach servers, beside a bare broadcast of the same bytes over the same sockets' library.

    python benchmarks/fast_sync.py --out benchmarks/results/fast_sync.json

The first rank's side is the run's own, to the servers' word that they have all. The weights are either those that stand in its
memory, as one rank has them, or tensors that are made one by one, as a gathering makes them. Servers take them in vLLM's words
with gloo workers, and load nothing. The wire is gloo's broadcast of buckets that lie ready, between processes that do nothing
else, in memory that they have had before. All share the machine's cores, which other work may keep busy: the ways take turns,
and ratios say more than seconds. Beside the seconds stands how long processors worked: the first rank's, and all receivers'.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import torch
from support.receiving_servers import fleet_of
from torch.distributed import TCPStore

from megatron_fork.serving import join_transfer

# (layers, width, feed-forward width, query width, key width, vocabulary): tied heads.
SHAPES = {"SmolLM2-135M": (30, 576, 1536, 576, 192, 49152), "random 1.7B": (28, 2048, 6144, 2048, 1024, 151936)}
_MOST = 151936 * 2048


def shapes_of(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    layers, width, wide, queries, keys, vocabulary = SHAPES[name]
    yield "model.embed_tokens.weight", (vocabulary, width)
    for layer in range(layers):
        before = f"model.layers.{layer}"
        yield f"{before}.self_attn.q_proj.weight", (queries, width)
        for part in ("k", "v"):
            yield f"{before}.self_attn.{part}_proj.weight", (keys, width)
        yield f"{before}.self_attn.o_proj.weight", (width, queries)
        for part in ("gate", "up"):
            yield f"{before}.mlp.{part}_proj.weight", (wide, width)
        yield f"{before}.mlp.down_proj.weight", (width, wide)
        for part in ("input_layernorm", "post_attention_layernorm"):
            yield f"{before}.{part}.weight", (width,)
    yield "model.norm.weight", (width,)


class Weights:
    """Tensors of a shape in a memory that is filled once; each a new one at every pass if they are `gathered`."""

    def __init__(self, name: str, memory: torch.Tensor, *, gathered: bool) -> None:
        self.name, self.memory, self.gathered = name, memory, gathered

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, shape in shapes_of(self.name):
            tensor = self.memory[: torch.Size(shape).numel()].view(shape)
            yield name, tensor.clone() if self.gathered else tensor

    def seconds(self) -> float:
        """Of one pass."""
        began = time.monotonic()
        for _ in self:
            pass
        return time.monotonic() - began

    @property
    def bytes(self) -> int:
        return sum(2 * torch.Size(shape).numel() for _, shape in shapes_of(self.name))


def _receive(port: int, rank: int, size: int, total: int, bucket: int) -> None:
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=300))
    group = join_transfer(store, "gloo", rank=rank, size=size, address="127.0.0.1", timeout=300)
    memory = torch.ones(bucket, dtype=torch.uint8)
    while True:
        for start in range(0, total, bucket):
            group.receive(memory[: min(bucket, total - start)], timeout=3600.0, is_wanted=lambda: True)
        store.add("done", 1)


class Wire:
    """A process group with so many receivers, which are there until `close`."""

    def __init__(self, receivers: int, total: int, bucket: int) -> None:
        self.receivers, self.total, self.bucket = receivers, total, bucket
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=300))
        context = multiprocessing.get_context("forkserver")
        self.processes = [
            context.Process(target=_receive, args=(self.store.port, rank, receivers + 1, total, bucket), daemon=True)
            for rank in range(1, receivers + 1)
        ]
        for process in self.processes:
            process.start()
        self.group = join_transfer(self.store, "gloo", rank=0, size=receivers + 1, address="127.0.0.1", timeout=3600)
        self.memory, self.rounds = torch.ones(bucket, dtype=torch.uint8), 0

    def seconds(self) -> float:
        """Of one broadcast of everything, bucket after bucket, to the word of all that they have it."""
        began = time.monotonic()
        self.rounds += 1
        for start in range(0, self.total, self.bucket):
            self.group.broadcast(self.memory[: min(self.bucket, self.total - start)]).wait()
        while self.store.add("done", 0) < self.receivers * self.rounds:
            time.sleep(0.001)
        return time.monotonic() - began

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _worked(pids: list[int]) -> float:
    """Seconds that processors have worked for these processes."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measured(
    name: str, receivers: int, mebibytes: int, rounds: int, *, gathered: bool, memory: torch.Tensor
) -> dict[str, Any]:
    weights = Weights(name, memory, gathered=gathered)
    settings = {"bucket_mebibytes": mebibytes, "control_seconds": 600.0, "verify_weights": "never"}
    wire = Wire(receivers, weights.bytes, mebibytes << 20)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            fleet_of(Path(folder), "vllm", workers=[1] * receivers, digests=False, **settings) as (engine, servers),
        ):
            ways: dict[str, tuple[Callable[[int], float], list[int]]] = {
                "pass": (lambda number: weights.seconds(), []),
                "wire": (lambda number: wire.seconds(), [each.pid for each in wire.processes]),
                "update": (lambda number: _updated(engine, weights, number), [each.process.pid for each in servers]),
            }
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            work: dict[str, list[list[float]]] = {way: [] for way in ways}
            for number in range(rounds + 1):
                for way, (act, pids) in ways.items():
                    before = _worked([os.getpid()]), _worked(pids)
                    took = act(number)
                    now = _worked([os.getpid()]), _worked(pids)
                    if number:  # the first forms the process group, and has new memory
                        seconds[way].append(round(took, 3))
                        work[way].append([round(later - sooner, 2) for sooner, later in zip(before, now, strict=True)])
            assert engine.update_bytes == weights.bytes and not engine.lines
    finally:
        wire.close()
    pairs = zip(seconds["update"], seconds["wire"], strict=True)
    return {
        "model": name,
        "bytes": weights.bytes,
        "gathered": gathered,
        "servers": receivers,
        "bucket_mebibytes": mebibytes,
        **{f"{way}_seconds": each for way, each in seconds.items()},
        **{f"{way}_worked": each for way, each in work.items()},
        "ratio_of_least": round(min(seconds["update"]) / min(seconds["wire"]), 3),
        "ratio_of_pairs": round(statistics.median(update / bare for update, bare in pairs), 3),
    }


def _updated(engine: Any, weights: Weights, version: int) -> float:
    engine.update_weights(weights, version)
    return float(engine.update_seconds)


# Assumed, not measured: bytes/s of each way of a link in use, and seconds of a call to 8 servers.
_LINKS = {"NVLink 4 (450 GB/s, 70 % of it)": 315e9, "InfiniBand NDR (50 GB/s, 90 % of it)": 45e9}
_CALL_SECONDS = 0.008
_GIGABYTES = {"8B": 16.4, "32B": 65.5, "30B-A3B": 61.1}


def assumed(mebibytes: int) -> list[dict[str, Any]]:
    """Seconds of an update to 8 servers: each bucket is gathered over the same kind of link while the one before it is sent."""
    rows = []
    for model, size in _GIGABYTES.items():
        for link, speed in _LINKS.items():
            buckets = -(-int(size * 1e9) // (mebibytes << 20))
            wire = size * 1e9 / buckets / speed
            rows.append(
                {
                    "model": model,
                    "link": link,
                    "wire_seconds": round(size * 1e9 / speed, 2),
                    "gathered_beside": round(wire + buckets * max(wire, wire + _CALL_SECONDS), 2),
                    "one_after_the_other": round(buckets * (2 * wire + _CALL_SECONDS), 2),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--mebibytes", type=int, nargs="+", default=[512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    memory = torch.randn(1 << 20).bfloat16().repeat(_MOST // (1 << 20) + 1)
    choices = itertools.product(arguments.models, arguments.servers, arguments.mebibytes, (False, True))
    for model, servers, mebibytes, gathered in choices:
        rows.append(measured(model, servers, mebibytes, arguments.rounds, gathered=gathered, memory=memory))
        print(json.dumps(rows[-1]), flush=True)
        if arguments.out:  # after each row: the largest may take longer than there is time
            write(arguments.out, rows)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    record = {
        "command": " ".join(["python", "benchmarks/fast_sync.py", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; loopback",
        "rows": rows,
        "assumed": assumed(512),
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
