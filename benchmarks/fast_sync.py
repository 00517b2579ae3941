"""How long new weights take to reach servers, beside a bare broadcast of the same bytes over the same sockets' library.

    python benchmarks/fast_sync.py --out benchmarks/results/fast_sync.json

The first rank's side is the run's own, from tensors that are made one by one to the servers' word that they have them. Servers
take them in vLLM's words with gloo workers, and load nothing. The wire is gloo's broadcast of buckets that lie ready, between
processes that do nothing else. All share the machine's cores, so that the ratio says more than the seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
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
    """Tensors of a shape, each a new one at every pass, as a gathering makes them, from a memory that is filled once."""

    def __init__(self, name: str, memory: torch.Tensor) -> None:
        self.name, self.memory = name, memory

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, shape in shapes_of(self.name):
            yield name, self.memory[: torch.Size(shape).numel()].view(shape).clone()

    @property
    def bytes(self) -> int:
        return sum(2 * torch.Size(shape).numel() for _, shape in shapes_of(self.name))


def _receive(port: int, rank: int, size: int, total: int, bucket: int, rounds: int) -> None:
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=300))
    group = join_transfer(store, "gloo", rank=rank, size=size, address="127.0.0.1", timeout=300)
    memory = torch.zeros(bucket, dtype=torch.uint8)
    for _ in range(rounds):
        for start in range(0, total, bucket):
            group.broadcast(memory[: min(bucket, total - start)]).wait()
        store.add("done", 1)


def wire_seconds(receivers: int, total: int, bucket: int, rounds: int) -> list[float]:
    """Of a broadcast of `total` bytes, bucket after bucket, to so many processes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=300))
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_receive, args=(store.port, rank, receivers + 1, total, bucket, rounds), daemon=True)
        for rank in range(1, receivers + 1)
    ]
    for process in processes:
        process.start()
    group = join_transfer(store, "gloo", rank=0, size=receivers + 1, address="127.0.0.1", timeout=300)
    memory, seconds = torch.ones(bucket, dtype=torch.uint8), []
    for number in range(rounds):
        began = time.monotonic()
        for start in range(0, total, bucket):
            group.broadcast(memory[: min(bucket, total - start)]).wait()
        while store.add("done", 0) < receivers * (number + 1):
            time.sleep(0.001)
        seconds.append(time.monotonic() - began)
    for process in processes:
        process.join()
    return seconds


def measured(name: str, receivers: int, mebibytes: int, rounds: int, *, verify: str) -> dict[str, Any]:
    weights = Weights(name, torch.randn(1 << 20).bfloat16().repeat(_MOST // (1 << 20) + 1))
    wire = wire_seconds(receivers, weights.bytes, mebibytes << 20, rounds)
    settings = {"bucket_mebibytes": mebibytes, "control_seconds": 600.0, "verify_weights": verify}
    with (
        tempfile.TemporaryDirectory() as folder,
        fleet_of(Path(folder), "vllm", workers=[1] * receivers, digests=False, **settings) as (engine, _),
    ):
        engine.update_weights(weights, 0)  # forms the process group
        updates = []
        for version in range(1, rounds + 1):
            engine.update_weights(weights, version)
            updates.append(engine.update_seconds)
        assert engine.update_bytes == weights.bytes and not engine.lines
    return {
        "model": name,
        "bytes": weights.bytes,
        "servers": receivers,
        "bucket_mebibytes": mebibytes,
        "wire_seconds": [round(each, 3) for each in wire],
        "update_seconds": [round(each, 3) for each in updates],
        "ratio_of_least": round(min(updates) / min(wire), 3),
        "ratio_of_medians": round(statistics.median(updates) / statistics.median(wire), 3),
    }


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
    rows = []
    for model in arguments.models:
        for servers in arguments.servers:
            for mebibytes in arguments.mebibytes:
                rows.append(measured(model, servers, mebibytes, arguments.rounds, verify="never"))
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
