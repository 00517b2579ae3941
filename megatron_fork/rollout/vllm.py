"""How vLLM's server speaks: its token-in, token-out route and its routes for training (vLLM 0.32).

The server needs `--enable-scale-out`, `VLLM_SERVER_DEV_MODE=1`, `--logprobs-mode processed_logprobs` and the extension of
`serving/vllm_worker.py`: see scripts/serve_engine.sh.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from megatron_fork.rollout.draft import Draft, Piece
from megatron_fork.rollout.server import Rendezvous, Server, ServerFault, spans_of
from megatron_fork.rollout.vllm_sampling import vllm_sampling

_RESETS = 50


class VllmServer(Server):
    async def pieces(self, draft: Draft, stop_tokens: Sequence[int]) -> AsyncGenerator[Piece, None]:
        sampling = vllm_sampling(draft, stop_tokens, stream_interval=self.config.stream_interval)
        room = draft.remaining
        body = {"token_ids": draft.prompt, "stream": True, "sampling_params": sampling}
        async for event in self.events("/inference/v1/generate", body):
            for choice in event.get("choices", []):
                piece = self.checked(_piece(choice), room)
                room -= len(piece.tokens)
                yield piece

    async def stop_all(self) -> None:
        await self.post("/abort_requests")

    async def workers(self) -> int:
        return int((await self.call("GET", "/get_world_size"))["world_size"])

    async def join(self, rendezvous: Rendezvous) -> None:
        info = {
            "address": rendezvous.address,
            "port": rendezvous.port,
            "prefix": rendezvous.name,
            "backend": rendezvous.backend,
            "size": rendezvous.size,
            "timeout": rendezvous.timeout,
        }
        await self.post("/init_weight_transfer_engine", {"init_info": info})

    def store_prefixes(self, rendezvous: Rendezvous) -> list[str]:
        return [rendezvous.name]

    async def begin_update(self) -> None:
        await self._disown()
        await self._on_workers("abandon_weight_update")
        await self.post("/start_weight_update")

    async def receive(
        self, rendezvous: Rendezvous, names: list[str], dtypes: list[str], shapes: list[list[int]]
    ) -> None:
        await self.post("/update_weights", {"update_info": {"names": names, "dtypes": dtypes, "shapes": shapes}})

    async def end_update(self, label: str) -> None:
        await self.post("/finish_weight_update", {"weight_version": label})

    async def reload(self, folder: str, label: str) -> None:
        await self._disown()
        await self._on_workers("reload_from_folder", folder)
        await self.post("/update_weight_version", {"new_version": label})

    async def _disown(self) -> None:
        """From here to the new label nothing counts that the server draws, which it does where another trainer uses it too."""
        await self.post("/update_weight_version", {"new_version": "loading"})

    async def forget_prefixes(self) -> None:
        for _ in range(_RESETS):
            held = {"reset_running_requests": "true"} if self.running else {}
            answer = await self.call("POST", "/reset_prefix_cache", params=held)
            if answer["success"]:
                return
            await asyncio.sleep(0.1)  # a request that has just ended still holds its part
        raise ServerFault("its cache of prefixes, which old weights wrote, cannot be reset")

    async def weight_label(self) -> str:
        return str((await self.call("GET", "/weight_info"))["weight_version"])

    async def pause(self) -> None:
        await self.call("POST", "/pause", params={"mode": "keep"})

    async def resume(self) -> None:
        await self.post("/resume")

    async def _on_workers(self, method: str, *arguments: Any) -> None:
        body = {"method": method, "args": list(arguments), "timeout": self.config.control_seconds}
        await self.post("/collective_rpc", body)


def _piece(choice: dict[str, Any]) -> Piece:
    try:
        tokens = choice["token_ids"] or []
        content = (choice["logprobs"] or {}).get("content") or []
        logprob = [float(each["logprob"]) for each in content]
        reason = choice["finish_reason"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ServerFault(f"it sent a choice without {error}") from error
    return Piece(
        tokens, logprob, reason if reason in ("stop", "length") else None, spans_of(choice.get("weight_versions"))
    )
