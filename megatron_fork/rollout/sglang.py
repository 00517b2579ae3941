"""How SGLang's server speaks: /generate and its update sessions (SGLang 0.5.23); see scripts/serve_engine.sh."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any
from urllib.parse import urlsplit

from megatron_fork.rollout.draft import Draft, Piece
from megatron_fork.rollout.server import Rendezvous, Server, ServerFault, spans_of

# A pickle of nothing but the class's name: the server imports it, and no code travels.
_PROCESSOR = json.dumps(
    {"callable": b"cmegatron_fork.serving.sglang_temperature\nEntropyTemperatureProcessor\n.".hex()}
)
_SESSION = "no weight-update session"


class SglangServer(Server):
    async def pieces(self, draft: Draft, stop_tokens: Sequence[int]) -> AsyncGenerator[Piece, None]:
        body = self._body(draft, stop_tokens)
        room, seen = draft.remaining, 0
        async for event in self.events("/generate", body):
            piece, seen = _piece(event, seen)
            piece = self.checked(piece, room)
            room -= len(piece.tokens)
            yield piece

    def _body(self, draft: Draft, stop_tokens: Sequence[int]) -> dict[str, Any]:
        request = draft.request
        sampling: dict[str, Any] = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k or -1,
            "sampling_seed": (request.seed + len(draft.tokens)) % (1 << 31),
            "max_new_tokens": draft.remaining,
            # Not `ignore_eos`, which would ignore these as well.
            "stop_token_ids": list(stop_tokens),
            "stream_interval": self.config.stream_interval,
        }
        body: dict[str, Any] = {
            "input_ids": draft.prompt,
            "sampling_params": sampling,
            "return_logprob": True,
            "stream": True,
        }
        if request.entropy_temperature is not None:
            # The option that allows it executes what clients send, and is for loopback alone: no other server is asked.
            if not _is_loopback(self.url):
                raise ServerFault(
                    "the entropy-dependent temperature is for SGLang servers on loopback alone", refused=True
                )
            sampling["custom_params"] = {"entropy_temperature": request.entropy_temperature.parameters}
            body["custom_logit_processor"] = _PROCESSOR
        return body

    async def stop_all(self) -> None:
        await self.post("/abort_request", {"abort_all": True})

    async def workers(self) -> int:
        info = await self.call("GET", "/server_info")
        return int(info["tp_size"]) * int(info.get("pp_size", 1))

    async def join(self, rendezvous: Rendezvous) -> None:
        await self.post(
            "/init_weights_update_group",
            {
                "master_address": rendezvous.address,
                "master_port": rendezvous.port,
                "rank_offset": 1,
                "world_size": rendezvous.size,
                "group_name": rendezvous.name,
                "backend": rendezvous.backend,
            },
        )

    def store_prefixes(self, rendezvous: Rendezvous) -> list[str]:
        """As SGLang's and torch's functions nest them: the group's name twice, then the device."""
        device = "cuda/" if rendezvous.backend == "nccl" else "cpu/"
        return [rendezvous.name, f"{rendezvous.name}/", device]

    async def begin_update(self) -> None:
        try:
            await self.post("/end_weight_update")  # of a trainer that is gone
        except ServerFault as fault:
            if _SESSION not in str(fault):
                raise
        await self.post("/begin_weight_update")

    async def receive(
        self, rendezvous: Rendezvous, names: list[str], dtypes: list[str], shapes: list[list[int]]
    ) -> None:
        await self.post(
            "/update_weights_from_distributed",
            {"names": names, "dtypes": dtypes, "shapes": shapes, "group_name": rendezvous.name, "flush_cache": False},
        )

    async def end_update(self, label: str) -> None:
        await self.post("/end_weight_update")
        await self._name_weights(label)

    async def reload(self, folder: str, label: str) -> None:
        await self.post("/update_weights_from_disk", {"model_path": folder, "flush_cache": False})
        await self._name_weights(label)

    async def _name_weights(self, label: str) -> None:
        await self.post("/update_weight_version", {"new_version": label, "abort_all_requests": False})

    async def forget_prefixes(self) -> None:
        await self.post("/flush_cache")

    async def weight_label(self) -> str:
        return str((await self.call("GET", "/model_info"))["weight_version"])

    async def pause(self) -> None:
        await self.post("/pause_generation", {"mode": "retract"})

    async def resume(self) -> None:
        await self.post("/continue_generation")


def _piece(event: dict[str, Any], seen: int) -> tuple[Piece, int]:
    """The tokens past the first `seen`, whether the server sends all of them each time or the new ones only."""
    try:
        about = event["meta_info"]
        total, tokens = int(about["completion_tokens"]), list(event["output_ids"])
        entries = about["output_token_logprobs"]
        if not 0 <= total - seen <= min(len(tokens), len(entries)):
            raise ServerFault(f"it sent {len(tokens)} tokens and {len(entries)} log-probs where {total - seen} are new")
        new = total - seen
        tokens, entries = tokens[len(tokens) - new :], entries[len(entries) - new :]
        if [entry[1] for entry in entries] != tokens:
            raise ServerFault("its tokens and log-probs disagree")
        reason = (about["finish_reason"] or {}).get("type")
        versions = spans_of(about.get("weight_versions"))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ServerFault(f"it sent an answer without {error}") from error
    finish = reason if reason in ("stop", "length") else None
    return Piece(tokens, [float(entry[0]) for entry in entries], finish, versions), total


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host == "::1" or host.startswith("127.")
