"""vLLM's HTTP interface: its token-in, token-out route and its routes for training (vLLM 0.32).

The server needs `--enable-scale-out`, `VLLM_SERVER_DEV_MODE=1`, `--logprobs-mode processed_logprobs` and the extension of
`serving/vllm_worker.py`: see serving/start.py.

What a token was drawn from it lists if it was started with `--return-sampling-mask`, which needs its second model runner.
Any other server is asked for the log-probs of the `top_k` most likely tokens: after truncation, so those it cut have none.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from megatron_fork.rollout.pending import PendingRequest, StreamChunk, vllm_sampling
from megatron_fork.rollout.servers.answers import LEAST_LOGPROB, Answer, checked_logprobs
from megatron_fork.rollout.servers.arrival import Held, held_in
from megatron_fork.rollout.servers.routed import of_npy
from megatron_fork.rollout.servers.server import BroadcastAddress, Server, workers_in
from megatron_fork.rollout.servers.wire import ServerFault, quoted, void
from megatron_fork.serving import Message

_RESETS = 50
# How far from 1 the probabilities of a kept set may sum up to: rounding, but not a token.
_SUM_ROUNDING = 1e-3


class VllmServer(Server):
    _lists_masks = True
    """Whether it was started to list what each token was drawn from, as far as is known."""

    async def chunks(self, pending: PendingRequest, stop_tokens: Sequence[int]) -> AsyncGenerator[StreamChunk, None]:
        while True:
            answer = Answer(pending, stop_tokens, self.vocabulary, self.pace, self.experts)
            by_logprobs = pending.request.reports_kept and not self._lists_masks
            async with contextlib.aclosing(self._choices(pending, stop_tokens, answer, by_logprobs)) as choices:
                async for choice in choices:
                    if answer.reports_kept and not by_logprobs and not answer.count and _lacks_masks(choice):
                        break
                    yield answer.take(*_fields(choice, by_logprobs=by_logprobs))
                else:
                    return
            self._lists_masks = False

    async def _choices(
        self, pending: PendingRequest, stop_tokens: Sequence[int], answer: Answer, by_logprobs: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        request = pending.request
        sampling = vllm_sampling(pending, stop_tokens, stream_interval=self.config.stream_interval)
        if request.reports_kept and not request.temperature:  # a server that lists masks refuses temperature 0
            sampling |= {"temperature": 1.0, "top_k": 1}
        if by_logprobs:
            sampling["logprobs"] = sampling["top_k"]
        body = {"token_ids": pending.prompt, "stream": True, "sampling_params": sampling}
        async with contextlib.aclosing(self.events("/inference/v1/generate", body, answer.allowance)) as events:
            async for event in events:
                choice = _choice_of(event)
                if choice is not None:
                    yield choice

    async def logprobs_of(self, tokens: Sequence[int], first: int) -> list[float]:
        sampling = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
        body = {"token_ids": list(tokens), "sampling_params": sampling}
        answer = await self.call("POST", "/inference/v1/generate", tokens=len(tokens), json=body)
        return logprobs_in(answer, tokens, first)

    async def stop_all(self) -> None:
        await self.post("/abort_requests")

    async def workers(self) -> int:
        return workers_in(await self.field_of("/get_world_size", "world_size"))

    async def join(self, rendezvous: BroadcastAddress) -> None:
        info = {
            "address": rendezvous.address,
            "port": rendezvous.port,
            "prefix": rendezvous.name,
            "backend": rendezvous.backend,
            "offset": rendezvous.offset,
            "size": rendezvous.size,
            "timeout": rendezvous.timeout,
        }
        await self.post("/init_weight_transfer_engine", {"init_info": info})

    def store_prefixes(self, rendezvous: BroadcastAddress) -> list[str]:
        return [rendezvous.name]

    async def begin_update(self) -> None:
        await self._disown()
        await self._on_workers("abandon_weight_update")
        await self.post("/start_weight_update")

    async def receive(self, rendezvous: BroadcastAddress, message: Message) -> None:
        await self.post("/update_weights", {"update_info": message.fields})

    async def end_update(self, label: str) -> None:
        await self.post("/finish_weight_update", {"weight_version": label})

    async def reload(self, folder: str, label: str) -> None:
        await self._disown()
        await self._on_workers("reload_from_folder", folder)
        await self.name_weights(label)

    async def take_messages(self, folder: str, label: str) -> None:
        await self._disown()
        await self._on_workers("load_messages", folder)
        await self.name_weights(label)

    async def name_weights(self, label: str) -> None:
        await self.post("/update_weight_version", {"new_version": label})

    async def held_types(self) -> list[tuple[str, str]]:
        return [(part.tensor, part.dtype) for report in await self._reports("weight_types", 0) for part in report]

    async def held(self, tensors: int) -> list[Held]:
        return [part for report in await self._reports("weight_checksums", tensors) for part in report]

    async def _reports(self, method: str, tensors: int) -> list[list[Held]]:
        """Of each worker."""
        body = {"method": method, "timeout": self.config.control_seconds}
        answer = await self.call("POST", "/collective_rpc", tokens=tensors, json=body)
        results = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(results, list) or not results:
            raise ServerFault(f"/collective_rpc was answered without a report of its weights: {quoted(answer, 60)}")
        return [held_in(each) for each in results]

    async def _disown(self) -> None:
        """Nothing that the server draws from here to the new label counts; it may draw for another trainer meanwhile."""
        await self.name_weights("loading")

    async def forget_prefixes(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.control_seconds):
                for _ in range(_RESETS):
                    held = {"reset_running_requests": "true"} if self.running else {}
                    answer = await self.call("POST", "/reset_prefix_cache", params=held)
                    if isinstance(answer, dict) and answer.get("success") is True:
                        return
                    await asyncio.sleep(0.1)  # a request that has just ended still holds its part
        raise ServerFault("its prefix cache, which old weights wrote, cannot be reset")

    async def weight_label(self) -> str:
        return quoted(await self.field_of("/weight_info", "weight_version"))

    async def models(self) -> list[str]:
        listed = await self.field_of("/v1/models", "data")
        found = listed if isinstance(listed, list) else []
        return [
            quoted(each[name]) for each in found if isinstance(each, dict) for name in ("id", "root") if name in each
        ]

    async def pause(self) -> None:
        await self.call("POST", "/pause", params={"mode": "keep"})

    async def resume(self) -> None:
        await self.post("/resume")

    async def _on_workers(self, method: str, *arguments: Any) -> None:
        body = {"method": method, "args": list(arguments), "timeout": self.config.control_seconds}
        await self.post("/collective_rpc", body)


def logprobs_in(answer: object, tokens: Sequence[int], first: int) -> list[float]:
    """Of the tokens from place `first` on, in an answer that was asked for `prompt_logprobs`; raises `ServerFault`."""
    entries = answer.get("prompt_logprobs") if isinstance(answer, dict) else None
    if not isinstance(entries, list) or len(entries) != len(tokens):
        raise void(f"it sent no log-probs of the {len(tokens)} tokens of a prompt: {quoted(entries, 60)}")
    scored = zip(tokens[first:], entries[first:], strict=True)
    return checked_logprobs([_logprob_of(token, entry) for token, entry in scored], len(tokens) - first)


def _logprob_of(token: int, entry: object) -> object:
    """What an entry of `prompt_logprobs` says of the token itself, in which others may be named too."""
    found = entry.get(str(token)) if isinstance(entry, dict) else None
    return found.get("logprob") if isinstance(found, dict) else None


def _choice_of(event: dict[str, Any]) -> dict[str, Any] | None:
    """The one choice of an event; None if it has none, as the last event with its count of tokens."""
    choices = event.get("choices")
    if choices == []:
        return None
    match choices:
        case [dict(choice)] if choice.get("index", 0) == 0:
            return choice
    raise void(f"it sent choices other than the one asked for: {quoted(choices)}")


def _lacks_masks(choice: dict[str, Any]) -> bool:
    return bool(choice.get("token_ids")) and choice.get("sampling_mask") is None


def _fields(choice: dict[str, Any], *, by_logprobs: bool) -> tuple[Any, ...]:
    """(tokens, log-probs, why it ended, versions, kept, experts) of a choice, as `Answer.take` needs them or as they came."""
    tokens = choice.get("token_ids")
    logprobs = choice.get("logprobs") or {}
    content = logprobs.get("content") if isinstance(logprobs, dict) else logprobs
    kept = _kept_by_logprobs(content) if by_logprobs else choice.get("sampling_mask")
    if isinstance(content, list):
        content = [each.get("logprob") if isinstance(each, dict) else each for each in content]
    reason, matched = choice.get("finish_reason"), choice.get("stop_reason")
    if reason == "stop" and isinstance(matched, str):  # the request names no stop text
        reason = f"stop at {matched}"
    routed = choice.get("routed_experts")
    return (
        [] if tokens is None else tokens,
        [] if content is None else content,
        reason,
        choice.get("weight_versions"),
        [] if kept is None and not tokens else kept,
        None if routed is None else lambda: of_npy(routed),
    )


def _kept_by_logprobs(content: object) -> list[object]:
    """The ids of each token's most likely ones that have a log-prob; where they lack probability, the report is cut short."""
    return [_finite(each.get("top_logprobs") if isinstance(each, dict) else None) for each in _listed(content)]


def _finite(entries: object) -> object:
    pairs = [(each.get("token_id"), each.get("logprob")) for each in _listed(entries) if isinstance(each, dict)]
    kept = [(token, value) for token, value in pairs if isinstance(value, int | float) and value > LEAST_LOGPROB]
    total = math.fsum(math.exp(min(value, 1.0)) for _, value in kept)
    if not abs(total - 1.0) < _SUM_ROUNDING:
        raise void(f"the {len(kept)} tokens that it kept have a probability of {total:.4f} together, not 1")
    return [token for token, _ in kept]


def _listed(sent: object) -> list[Any]:
    return sent if isinstance(sent, list) else []
