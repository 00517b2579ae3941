"""What SGLang's workers hold of their weights, as checksums, told to the trainer.

    python -m sglang.launch_server ... --custom-weight-loader megatron_fork.serving.sglang_weights.answer

SGLang's own checksums are of its fused tensors, with a hash of its own. A custom loader is called in every worker with the
model; this one loads nothing. It can return nothing, and an error would end the server: the answer goes into a store of ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta

import torch
from sglang.srt.layers.linear import get_group_rank_size
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from megatron_fork.serving.held import held_parts

_TIMEOUT = timedelta(seconds=60)


def answer(model: torch.nn.Module, tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Put this worker's report, or what went wrong, under `answer/N`; the one tensor holds the request, JSON in bytes."""
    request = json.loads(bytes(tensors[0][1].cpu().tolist()))
    try:
        parts = held_parts(model, outline=request["is_outline"], rank_of=_rank)
        report = {"report": json.dumps([part.outline if request["is_outline"] else part.fields for part in parts])}
    except Exception as error:  # the server must go on
        report = {"error": f"{type(error).__name__}: {error}"}
    try:
        store = TCPStore(request["address"], request["port"], is_master=False, timeout=_TIMEOUT)
        store.set(f"answer/{store.add('answers', 1) - 1}", json.dumps(report))
    except RuntimeError:  # the trainer is gone
        return


def _rank(module: torch.nn.Module, of_keys: bool) -> int:
    settings = vars(module)
    group = settings.get("kv_tp_group" if of_keys else "tp_group")
    return int(get_group_rank_size(group)[0]) if group is not None else 0
