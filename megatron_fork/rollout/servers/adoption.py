"""Whether servers that keep their weights have the model that is meant, and all of them the same weights."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from megatron_fork.errors import RolloutError
from megatron_fork.rollout.servers.server import Server
from megatron_fork.rollout.servers.wire import ServerFault


async def label_of_all(servers: Sequence[Server], model: str) -> str:
    """The label of the weights of all `servers`.

    Raises `RolloutError` if one does not answer, serves no model of the name or folder `model`, or has another label.
    """
    label, silent = await label_of_those_up(servers, model)
    for server, fault in silent.items():
        raise RolloutError(f"rollout.servers: {server}: {fault}", hint="is it up?")
    return label


async def label_of_those_up(servers: Sequence[Server], model: str) -> tuple[str, dict[Server, ServerFault]]:
    """The label of the weights of all `servers` that answer, and why the others do not.

    Raises `RolloutError` if none answers, or if one serves no model of the name or folder `model`, or has another label.
    """
    found = await asyncio.gather(*(_described(server) for server in servers))
    silent = {server: said for server, said in zip(servers, found, strict=True) if isinstance(said, ServerFault)}
    labels: dict[str, str] = {}
    for server, said in zip(servers, found, strict=True):
        if isinstance(said, ServerFault):
            continue
        names, labels[str(server)] = said
        if not serves(names, model):
            raise RolloutError(
                f"rollout.servers: {server} serves {', '.join(names) or 'no model'}, not {model}",
                hint="start it with that model, or give the name or folder that it says",
            )
    if not labels:
        raise RolloutError(
            f"rollout.servers: {'; '.join(f'{server}: {fault}' for server, fault in silent.items())}",
            hint="is one of them up?" if len(silent) > 1 else "is it up?",
        )
    if len(set(labels.values())) > 1:
        raise RolloutError(
            f"rollout.servers have different weights: {', '.join(f'{name} {label}' for name, label in labels.items())}",
            hint="start all of them with the same model, or let the run send its own",
        )
    return next(iter(labels.values())), silent


def serves(names: Sequence[str], model: str) -> bool:
    """Whether a server that says these names and folders of its model has `model`."""
    return any(_is_same(name, model) for name in names)


async def _described(server: Server) -> tuple[list[str], str] | ServerFault:
    try:
        return await server.models(), await server.weight_label()
    except ServerFault as fault:
        return fault


def _is_same(name: str, model: str) -> bool:
    return name == model or (Path(model).exists() and Path(name).resolve() == Path(model).resolve())
