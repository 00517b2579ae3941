"""What new weights cost the first rank: one broadcast to all servers against one for each, to real receivers on loopback.

    python benchmarks/weight_broadcast.py --out benchmarks/results/weight_broadcast.json

The trainer's side is the run's own; servers take the weights in vLLM's words with gloo workers, and load nothing. Bytes are
what the kernel counts on the first rank's connections. Here receivers share the processors with the first rank and each other,
so that seconds say little about a cluster: for that count the bytes, and the processor seconds of a bucket without weights.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import socket
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import torch
from support.receiving_servers import ReceivingServer

from megatron_fork.rollout import RemoteConfig
from megatron_fork.rollout.servers.server import Server
from megatron_fork.rollout.servers.shared_transfer import SharedTransfer
from megatron_fork.rollout.servers.vllm import VllmServer
from megatron_fork.rollout.weights import packed
from megatron_fork.serving import address_towards, described

# Of Linux's `struct tcp_info`: bytes sent, those sent again included.
_BYTES_SENT = 200
_INFO_BYTES = 232
# Buckets without weights, for what the calls to servers take.
_EMPTY = 20


def bytes_sent() -> int:
    """By this process over TCP connections that are open now."""
    total = 0
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if not file.is_socket():
                continue
            with socket.socket(fileno=os.dup(int(file.name))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
                total += struct.unpack_from("Q", info, _BYTES_SENT)[0] if len(info) == _INFO_BYTES else 0
    return total


async def measured(servers: Sequence[Server], mebibytes: int, *, together: bool) -> dict[str, Any]:
    """One update of so much in two buckets, and empty ones, over one process group or one for each server."""
    config = RemoteConfig(control_seconds=300.0)
    address = address_towards(*servers[0].endpoint)
    workers = {server: await server.workers() for server in servers}
    parties = [list(servers)] if together else [[server] for server in servers]
    began = time.monotonic()
    transfers = await asyncio.gather(
        *(SharedTransfer.formed(party, workers, address, config, "gloo") for party in parties)
    )
    formed = time.monotonic() - began

    async def send(bucket: list[tuple[str, torch.Tensor]]) -> None:
        await asyncio.gather(*(transfer.send(described(bucket), packed(bucket)) for transfer in transfers))

    await asyncio.gather(*(server.begin_update() for server in servers))
    try:
        await send([("warm", torch.zeros(1))])
        before, processor, began = bytes_sent(), _processor(), time.monotonic()
        for half in range(2):
            await send([(f"{half}.{place}", torch.zeros(mebibytes << 15)) for place in range(4)])
        row = {
            "seconds_to_form": formed,
            "seconds": time.monotonic() - began,
            "processor_seconds": _processor() - processor,
            "bytes_out_per_byte": (bytes_sent() - before) / (mebibytes << 20),
        }
        processor, began = _processor(), time.monotonic()
        for _ in range(_EMPTY):
            await send([("empty", torch.zeros(1))])
        row["seconds_a_bucket_without_weights"] = (time.monotonic() - began) / _EMPTY
        row["processor_seconds_a_bucket_without_weights"] = (_processor() - processor) / _EMPTY
    finally:
        await asyncio.gather(*(server.end_update("measured") for server in servers))
        for transfer in transfers:
            transfer.close()
    return {name: round(value, 4) for name, value in row.items()}


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def all_rows(urls: Sequence[str], counts: Sequence[int], mebibytes: int) -> dict[str, dict[str, Any]]:
    servers = [VllmServer(url, RemoteConfig(control_seconds=300.0), 1) for url in urls]
    rows = {}
    for count in counts:
        for together in (False, True):
            name = f"{count} servers, " + ("one process group" if together else "a process group for each")
            rows[name] = await measured(servers[:count], mebibytes, together=together)
            print(name, json.dumps(rows[name]), flush=True)
    for server in servers:
        await server.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--servers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--mebibytes", type=int, default=64)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Forks of this process, which has done nothing yet: each would take half a GiB by itself.
    servers = [ReceivingServer("vllm", digests=False, method="fork") for _ in range(max(arguments.servers))]
    try:
        urls = [server.start().url for server in servers]
        rows = asyncio.run(all_rows(urls, arguments.servers, arguments.mebibytes))
    finally:
        for server in servers:
            server.close()
    if arguments.out:
        record = {
            "command": " ".join(["python", "benchmarks/weight_broadcast.py", *sys.argv[1:]]),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; loopback",
            "mebibytes": arguments.mebibytes,
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
