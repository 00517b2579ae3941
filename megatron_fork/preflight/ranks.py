"""A round trip of data through all ranks, with its time and bandwidth; alone there is none to make."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from importlib import metadata

import torch
import torch.distributed as dist

from megatron_fork import distributed
from megatron_fork.distributed import collectives
from megatron_fork.errors import PreflightError, UnreachableError
from megatron_fork.preflight.findings import Finding

_REPEATS = 3


def ranks(*, seconds: float) -> Iterator[Finding]:
    """Meet the other ranks, sum and pass data; raises an error that names those that do not answer in `seconds`."""
    if not distributed.is_launched():
        yield Finding(
            "round trip", "not tried: this process is alone", "start doctor with torchrun or srun, as the run", "note"
        )
        return
    began = time.perf_counter()
    with distributed.roll_call(seconds=seconds) as hosts:
        distributed.initialize(timeout_minutes=max(2.0, 2 * seconds / 60))
    met = time.perf_counter() - began
    world, backend = dist.group.WORLD, dist.get_backend()
    assert world is not None
    spread = f"{len(hosts)} ranks on {len(set(hosts))} hosts"
    yield Finding("ranks met", spread, f"in {met:.1f} s, {backend}")
    yield _alike(hosts)
    count = (64 if backend == "nccl" else 4) << 18
    numbers = torch.full((count,), float(dist.get_rank() + 1), device=distributed.device())
    expected = world.size() * (world.size() + 1) / 2

    def summed() -> bool:
        total = numbers.clone()
        works = [dist.all_reduce(total, async_op=True)]
        _wait([work for work in works if work is not None], "all-reduce", hosts, seconds)
        return bool((total == expected).all())

    yield _timed("all-reduce", summed, numbers.nbytes * 2 * (world.size() - 1) / world.size(), hosts)

    def passed() -> bool:
        exchange = collectives.ring_exchange(numbers, world)
        _wait(exchange.works, "send around all ranks", hosts, seconds)
        before = (dist.get_rank() - 1) % world.size() + 1
        return bool((exchange.arriving == float(before)).all())

    yield _timed("send around all ranks", passed, numbers.nbytes, hosts)


def _wait(works: Sequence[dist.Work], what: str, hosts: Sequence[str], seconds: float) -> None:
    """Wait for this rank's part; if it is not done in time, name the ranks that did not do theirs."""
    try:
        for work in works:
            work.wait(timedelta(seconds=seconds))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError as error:  # of gloo and NCCL alike: a time-out, or a connection that is gone
        place = f"rank {dist.get_rank()} on {hosts[dist.get_rank()]}"
        raise UnreachableError(
            f"the {what} of {len(hosts)} ranks did not come back at {place} in {seconds:g} s: {str(error).splitlines()[0]}",
            hint="see which rank prints no such line: its host or its network interface (NCCL_SOCKET_IFNAME, "
            "GLOO_SOCKET_IFNAME) is to blame; NCCL_DEBUG=INFO says more",
        ) from error


def _timed(name: str, work: Callable[[], bool], nbytes: float, hosts: Sequence[str]) -> Finding:
    """The fastest of a few repeats at the slowest rank."""
    fastest, right = float("inf"), True
    for _ in range(_REPEATS):
        dist.barrier()
        began = time.perf_counter()
        right = work() and right
        fastest = min(fastest, time.perf_counter() - began)
    results = collectives.gather_objects((fastest, right), dist.group.WORLD)
    wrong = [f"rank {rank} on {hosts[rank]}" for rank, (_, is_right) in enumerate(results) if not is_right]
    if wrong:
        raise PreflightError(
            f"the {name} of {len(hosts)} ranks gave wrong numbers at {', '.join(wrong[:4])}",
            hint="leave those hosts out, and have their memory and network tested",
        )
    slowest = max(range(len(results)), key=lambda rank: results[rank][0])
    longest = results[slowest][0]
    return Finding(
        name,
        f"{longest * 1e3:.1f} ms, {nbytes / longest / 1e9:.2f} GB/s",
        f"{nbytes / 2**20:.0f} MiB a rank; slowest at rank {slowest} on {hosts[slowest]}",
    )


def _alike(hosts: Sequence[str]) -> Finding:
    """Nodes that differ: versions must be the same everywhere, GPUs are only compared."""
    versions = {name: metadata.version(name) for name in ("torch", "megatron-core", "transformers")}
    gpu = torch.cuda.get_device_name(distributed.device()) if torch.cuda.is_available() else "no GPU"
    everywhere = collectives.gather_objects((versions, gpu), dist.group.WORLD)
    for name, expected in everywhere[0][0].items():
        for rank, (found, _) in enumerate(everywhere):
            if found[name] != expected:
                raise PreflightError(
                    f"rank {rank} on {hosts[rank]} has {name} {found[name]}, the first rank on {hosts[0]} has {expected}",
                    hint="install the same versions on all nodes, or use one container image",
                )
    kinds = sorted({each for _, each in everywhere})
    differ = len(kinds) > 1
    note = ", ".join(kinds) + (": a step takes as long as on the slowest" if differ else "")
    return Finding("nodes", "the same versions on all ranks", note, "note" if differ else "ok")
