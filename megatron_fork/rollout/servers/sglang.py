"""SGLang's HTTP interface: /generate and its update sessions (SGLang 0.5.23); see serving/start.py."""

from __future__ import annotations

import base64
import contextlib
import json
import pickle
from collections.abc import AsyncGenerator, Sequence
from typing import Any
from urllib.parse import urlsplit

import torch

from megatron_fork.rollout.pending import PendingRequest, StreamChunk
from megatron_fork.rollout.servers.answers import Answer, checked_logprobs
from megatron_fork.rollout.servers.arrival import Held, held_in
from megatron_fork.rollout.servers.routed import of_int32
from megatron_fork.rollout.servers.server import BroadcastAddress, Server, workers_in
from megatron_fork.rollout.servers.wire import ServerFault, quoted, void
from megatron_fork.serving import Message, TransferStore, address_towards

# A pickle of the class's name alone: the server imports the class, and no code is sent.
_PROCESSOR = json.dumps(
    {"callable": b"cmegatron_fork.serving.sglang_temperature\nEntropyTemperatureProcessor\n.".hex()}
)
# Of serving/sglang_weights.py.
_LOADER = "megatron_fork.serving.sglang_weights.answer"
_SESSION = "no weight-update session"


class SglangServer(Server):
    pulse = "/model_info"  # its /health draws a token

    async def chunks(self, pending: PendingRequest, stop_tokens: Sequence[int]) -> AsyncGenerator[StreamChunk, None]:
        body = self._body(pending, stop_tokens)
        answer = Answer(pending, stop_tokens, self.vocabulary, self.pace, self.experts)
        async with contextlib.aclosing(self.events("/generate", body, answer.allowance)) as events:
            async for event in events:
                yield answer.take(*_fields(event, answer.count, masks=answer.reports_kept))

    def _body(self, pending: PendingRequest, stop_tokens: Sequence[int]) -> dict[str, Any]:
        request = pending.request
        sampling: dict[str, Any] = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k or -1,
            "min_p": request.min_p,
            "sampling_seed": (request.seed + len(pending.tokens)) % (1 << 31),
            "max_new_tokens": pending.remaining,
            # Not `ignore_eos`, which would ignore these as well.
            "stop_token_ids": list(stop_tokens),
            "stream_interval": self.config.stream_interval,
        }
        body: dict[str, Any] = {
            "input_ids": pending.prompt,
            "sampling_params": sampling,
            "return_logprob": True,
            "stream": True,
        }
        if request.reports_kept:
            body["return_sampling_mask"] = True
            sampling["top_k"] = request.top_k if request.temperature else 1
        if self.experts is not None:
            body["return_routed_experts"] = True
        if request.entropy_temperature is not None:
            # The server option for this executes what clients send, so it is only for loopback: no other server is asked.
            host = urlsplit(self.url).hostname or ""
            if host not in ("localhost", "::1") and not host.startswith("127."):
                raise ServerFault(
                    "the entropy-dependent temperature is only for SGLang servers on loopback", refused=True
                )
            sampling["custom_params"] = {"entropy_temperature": request.entropy_temperature.parameters}
            body["custom_logit_processor"] = _PROCESSOR
        return body

    async def logprobs_of(self, tokens: Sequence[int], first: int) -> list[float]:
        body = {
            "input_ids": list(tokens),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            "logprob_start_len": first - 1,  # the first entry is of that place, and has no value
        }
        return logprobs_in(await self.call("POST", "/generate", tokens=len(tokens), json=body), tokens, first)

    async def stop_all(self) -> None:
        await self.post("/abort_request", {"abort_all": True})

    async def workers(self) -> int:
        info = await self.call("GET", "/server_info")
        if not isinstance(info, dict):
            raise ServerFault(f"/server_info is not an object: {quoted(info)}")
        return workers_in(info.get("tp_size"), info.get("pp_size", 1))

    async def join(self, rendezvous: BroadcastAddress) -> None:
        await self.post(
            "/init_weights_update_group",
            {
                "master_address": rendezvous.address,
                "master_port": rendezvous.port,
                "rank_offset": rendezvous.offset,
                "world_size": rendezvous.size,
                "group_name": rendezvous.name,
                "backend": rendezvous.backend,
            },
        )

    async def leave(self, rendezvous: BroadcastAddress) -> None:
        with contextlib.suppress(ServerFault):  # it has not joined
            await self.post("/destroy_weights_update_group", {"group_name": rendezvous.name})

    def store_prefixes(self, rendezvous: BroadcastAddress) -> list[str]:
        """The prefixes that SGLang and torch nest: the group's name twice, then the device."""
        device = "cuda/" if rendezvous.backend == "nccl" else "cpu/"
        return [rendezvous.name, f"{rendezvous.name}/", device]

    async def begin_update(self) -> None:
        try:
            await self.post("/end_weight_update")  # the session of a trainer that is gone
        except ServerFault as fault:
            if _SESSION not in str(fault):
                raise
        await self.post("/begin_weight_update")

    async def receive(self, rendezvous: BroadcastAddress, message: Message) -> None:
        await self.post(
            "/update_weights_from_distributed",
            {
                "names": message.names,
                "dtypes": message.dtypes,
                "shapes": message.shapes,
                "group_name": rendezvous.name,
                "load_format": "flattened_bucket",
                "flush_cache": False,
            },
        )

    async def end_update(self, label: str) -> None:
        await self.post("/end_weight_update")
        await self.name_weights(label)

    async def reload(self, folder: str, label: str) -> None:
        await self.post("/update_weights_from_disk", {"model_path": folder, "flush_cache": False})
        await self.name_weights(label)

    async def name_weights(self, label: str) -> None:
        await self.post("/update_weight_version", {"new_version": label, "abort_all_requests": False})

    async def held_types(self) -> list[tuple[str, str]]:
        return [(part.tensor, part.dtype) for part in await self._held(is_outline=True)]

    async def held(self, tensors: int) -> list[Held]:
        return await self._held(is_outline=False)

    async def _held(self, *, is_outline: bool) -> list[Held]:
        """What the workers put into a store of ours: no route of SGLang's brings it."""
        info = await self.call("GET", "/server_info")
        if not isinstance(info, dict) or _LOADER not in (info.get("custom_weight_loader") or ()):
            raise ServerFault(f"it was started without --custom-weight-loader {_LOADER}")
        workers, ranks = await self.workers(), workers_in(info.get("tp_size"))
        try:
            store = TransferStore(address_towards(*self.endpoint), timeout=self.config.control_seconds)
        except (OSError, RuntimeError) as error:
            raise ServerFault(f"its workers cannot be reached: {error}") from error
        try:
            request = {"address": store.address, "port": store.port, "is_outline": is_outline}
            asked = torch.frombuffer(bytearray(json.dumps(request).encode()), dtype=torch.uint8)
            sent = base64.b64encode(pickle.dumps([("request", asked)])).decode()
            await self.begin_update()
            body = {"serialized_named_tensors": [sent] * ranks, "load_format": _LOADER, "flush_cache": False}
            await self.post("/update_weights_from_tensor", body)
            await self.post("/end_weight_update")
            keys = [f"answer/{number}" for number in range(workers)]
            if not store.store.check(keys):
                raise ServerFault(f"not all of its {workers} workers have said what they hold")
            answers = [json.loads(store.store.get(key)) for key in keys]
        except RuntimeError as error:  # torch's, of the store
            raise ServerFault(f"what its workers hold did not arrive: {error}") from error
        finally:
            store.close()
        for each in answers:
            if "error" in each:
                raise ServerFault(f"its workers cannot say what they hold: {quoted(each['error'])}")
        return [part for each in answers for part in held_in(each.get("report"))]

    async def forget_prefixes(self) -> None:
        await self.post("/flush_cache")

    async def weight_label(self) -> str:
        return quoted(await self.field_of("/model_info", "weight_version"))

    async def models(self) -> list[str]:
        return [quoted(await self.field_of("/model_info", "model_path"))]

    async def pause(self) -> None:
        await self.post("/pause_generation", {"mode": "retract"})

    async def resume(self) -> None:
        await self.post("/continue_generation")


def logprobs_in(answer: object, tokens: Sequence[int], first: int) -> list[float]:
    """Of the tokens from place `first` on, in an answer whose log-probs begin one place before; raises `ServerFault`."""
    about = answer.get("meta_info") if isinstance(answer, dict) else None
    entries = about.get("input_token_logprobs") if isinstance(about, dict) else None
    if not isinstance(entries, list) or len(entries) != len(tokens) - first + 1:
        raise void(f"it sent no log-probs of the {len(tokens)} tokens of a prompt: {quoted(entries, 60)}")
    pairs = [entry if isinstance(entry, list) and len(entry) >= 2 else [None, None] for entry in entries[1:]]
    # It calls a token at the vocabulary's end 0.
    if any(pair[1] not in (token, 0) for pair, token in zip(pairs, tokens[first:], strict=True)):
        raise void("its log-probs are of other tokens than the prompt's")
    return checked_logprobs([pair[0] for pair in pairs], len(tokens) - first)


def _fields(event: dict[str, Any], seen: int, *, masks: bool) -> tuple[Any, ...]:
    """What `Answer.take` needs, of the tokens after the first `seen`; an event may hold all tokens or only new ones.

    With `masks` the log-probs are those under the softmax over what each token was drawn from.
    """
    about, tokens = event.get("meta_info"), event.get("output_ids")
    if not isinstance(about, dict) or not isinstance(tokens, list):
        raise void(f"it sent an answer without tokens or meta_info: {quoted(event)}")
    entries, total = about.get("output_token_logprobs"), about.get("completion_tokens")
    entries = [] if entries is None and not tokens else entries
    if (
        not isinstance(entries, list)
        or type(total) is not int
        or not 0 <= total - seen <= min(len(tokens), len(entries))
    ):
        have = len(entries) if isinstance(entries, list) else quoted(entries, 60)
        raise void(f"it sent {len(tokens)} tokens and {have} log-probs, and counts {quoted(total, 60)} after {seen}")
    new = total - seen
    tokens, entries = tokens[len(tokens) - new :], entries[len(entries) - new :]
    pairs = [entry if isinstance(entry, list) and len(entry) >= 2 else [entry, None] for entry in entries]
    if [pair[1] for pair in pairs] != tokens:
        raise void("its tokens and log-probs disagree")
    logprobs, kept = [pair[0] for pair in pairs], None
    if masks:
        logprobs = _last(about.get("output_token_sampling_logprobs"), new)
        kept = _last(about.get("output_token_sampling_mask"), new)
    routed = about.get("routed_experts")
    return (
        tokens,
        logprobs,
        _reason(about.get("finish_reason")),
        about.get("weight_versions"),
        kept,
        None if routed is None else lambda: of_int32(routed),
    )


def _last(sent: object, count: int) -> Any:
    """The last `count` of a list; anything else as it came, which is refused later."""
    if sent is None and not count:
        return []
    return sent[len(sent) - count :] if isinstance(sent, list) and len(sent) >= count else sent


def _reason(finish: object) -> object:
    if not isinstance(finish, dict):
        return finish
    # When its sampler fails, SGLang ends a response with an invented stop token, and says so by a text.
    if finish.get("type") == "stop" and isinstance(finish.get("matched"), str):
        return f"stop at {finish['matched']}"
    return finish.get("type") or finish
