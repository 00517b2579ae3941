"""How vLLM is asked for a response, over HTTP and within a process alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_fork.rollout.pending import PendingRequest


def vllm_sampling(pending: PendingRequest, stop_tokens: Sequence[int], *, stream_interval: int) -> dict[str, Any]:
    """Fields of vLLM's `SamplingParams` for what is left of a pending request."""
    request = pending.request
    sampling: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "seed": (request.seed + len(pending.tokens)) % (1 << 62),
        "max_tokens": pending.remaining,
        "logprobs": 0,
        "ignore_eos": True,  # the stop tokens are this side's to say
        "stop_token_ids": list(stop_tokens),
        "stream_interval": stream_interval,
        "detokenize": False,
    }
    if request.entropy_temperature is not None:
        sampling["extra_args"] = {"entropy_temperature": request.entropy_temperature.parameters}
    return sampling
