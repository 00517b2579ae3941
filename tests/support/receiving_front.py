"""What a server without a model does that takes weights in vLLM's or SGLang's words, with real gloo workers.

The workers of a server are threads of its process, so that one signal stops or ends all of it. `Misdeed` says what it does
wrong while it receives, and when; `/received` says what its weights are.
"""

import base64
import hashlib
import json
import math
import os
import pickle
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore

from megatron_fork.serving import KeptMemory, Message, WeightCopy, address_towards, is_open, join_transfer
from megatron_fork.serving.held import HeldPart
from megatron_fork.serving.messages import messages_in, unpacked


@dataclass(frozen=True)
class Misdeed:
    """What happens when the tensor `tensor` of the bucket `bucket`, both counted from 0 in an update, is to be received.

    kill, stop: the whole process, by a signal. hang: its workers alone. refuse: the bucket is refused. lie: it is not received,
    and said to be. flip: one bit of the tensor is kept wrong, once, or with `flip always` each time. skip: it keeps its old
    values, once. silent: it reports no checksums. alone: it refuses to join a process group with others, whenever that is.
    forget: what it had before the update is lost.
    """

    what: str
    bucket: int = 0
    tensor: int = 0


def digest(tensor: torch.Tensor) -> str:
    """Of dtype, shape and every bit."""
    plain = tensor.detach().contiguous()
    return hashlib.sha256(
        f"{plain.dtype}{tuple(plain.shape)}".encode() + plain.view(torch.uint8).numpy().tobytes()
    ).hexdigest()


@dataclass
class Received:
    """Of one worker."""

    group: Any = None
    store: Any = None
    staged: dict[str, str] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    copy: WeightCopy = field(default_factory=WeightCopy)
    memory: KeptMemory = field(default_factory=KeptMemory)

    @property
    def digests(self) -> dict[str, str]:
        """Of the copy that it keeps for changes, made only now."""
        return {name: digest(tensor) for name, tensor in self.copy.tensors.items()}


class Front:
    """What the server's routes do."""

    def __init__(self, engine: str, workers: int, digests: bool) -> None:
        self.engine, self.digests = engine, digests
        self.workers = [Received() for _ in range(workers)]
        self.threads = ThreadPoolExecutor(workers)
        self.label, self.misdeed = "default", None
        self.buckets = 0
        self.in_session = False
        self.calls: Counter[str] = Counter()
        self.timeout = 0.0
        self.paused = 0
        self.loaders = ["megatron_fork.serving.sglang_weights.answer"]

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        self.calls[path] += 1
        act = getattr(self, path.strip("/"), None)
        if act is not None:
            return act(**body) or {"success": True}
        if path == "/get_world_size":
            return {"world_size": len(self.workers)}
        if path == "/server_info":
            return {"tp_size": len(self.workers), "custom_weight_loader": self.loaders}
        if path in ("/weight_info", "/model_info"):
            return {"weight_version": self.label}
        return {"success": True}

    def behave(self, misdeed: dict[str, Any] | None) -> None:
        self.misdeed = Misdeed(**misdeed) if misdeed else None

    def received(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "workers": [worker.whole if self.digests else worker.digests for worker in self.workers],
            "calls": self.calls,
            "paused": self.paused,
        }

    def pause(self) -> None:
        self.paused += 1

    def resume(self) -> None:
        self.paused = 0

    pause_generation = lambda self, mode: self.pause()  # noqa: E731
    continue_generation = resume

    def _on_all(self, work) -> None:
        futures = [self.threads.submit(work, place, worker) for place, worker in enumerate(self.workers)]
        for future in futures:
            future.result()

    def _join(self, address, port, prefixes, backend, offset, size, timeout) -> None:
        if self.misdeed and self.misdeed.what == "alone" and size > 1 + len(self.workers):
            raise RuntimeError("this network forbids it")
        self.timeout = timeout

        def join(place: int, worker: Received) -> None:
            if worker.group is not None:
                worker.group.close()
            worker.store = inner = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout))
            for prefix in prefixes:
                inner = PrefixStore(prefix, inner)
            here = address_towards(address, port)
            worker.group = join_transfer(inner, backend, rank=offset + place, size=size, address=here, timeout=timeout)

        self._on_all(join)

    def _begin(self) -> None:
        self.in_session, self.buckets = True, 0
        for worker in self.workers:
            if self.misdeed and self.misdeed.what == "forget":
                worker.copy = WeightCopy()
            worker.staged = {}
            worker.copy.begin()

    def _receive(self, message: Message) -> None:
        if not self.in_session:
            raise RuntimeError("no update has begun")
        bucket, self.buckets = self.buckets, self.buckets + 1
        misdeed = self.misdeed if self.misdeed and self.misdeed.bucket == bucket else None
        if misdeed and misdeed.what == "refuse":
            raise RuntimeError("no such parameter")
        if misdeed and misdeed.what == "lie":
            return

        def receive(place: int, worker: Received) -> None:
            if misdeed and misdeed.what in ("kill", "stop", "hang") and place == 0:
                self._misbehave(misdeed.what)
            worker.copy.check(message)
            data = worker.memory.take(message.bytes)
            if message.bytes and self.engine == "vllm":
                worker.group.receive(data, timeout=self.timeout, is_wanted=lambda: is_open(worker.store))
            elif message.bytes:
                worker.group.broadcast(data).wait()
            whole = worker.copy.receive(message, data) if message.version else unpacked(message, data)
            for number, (name, tensor) in enumerate(whole if self.digests else ()):
                if misdeed and misdeed.what.split()[0] in ("flip", "skip") and misdeed.tensor == number and place == 0:
                    tensor = self._spoilt(misdeed.what, worker.tensors.get(name), tensor)
                worker.tensors[name] = tensor.clone()
                worker.staged[name] = digest(tensor)

        try:
            self._on_all(receive)
        except (RuntimeError, ValueError):
            self.in_session = False
            if self.engine == "vllm":
                self._leave()
            raise

    def _spoilt(self, what: str, old: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        if what != "flip always":
            self.misdeed = None
        if what == "skip":
            return torch.zeros_like(new) if old is None else old
        spoilt = new.clone()
        spoilt.view(-1).view(torch.uint8)[spoilt.nbytes // 2] ^= 8
        return spoilt

    def _misbehave(self, what: str) -> None:
        if what == "hang":
            time.sleep(3600.0)
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[what])

    def _leave(self) -> None:
        for worker in self.workers:
            if worker.group is not None:
                worker.group.close()
                worker.group = None

    def _finish(self, label: str | None) -> None:
        if not self.in_session:
            raise RuntimeError("no weight-update session is open")
        self.in_session = False
        for worker in self.workers:
            worker.whole = worker.staged or worker.whole  # a session in which nothing was loaded
            worker.copy.finish()
        self.label = label or self.label

    # vLLM's words.

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        prefix = init_info.pop("prefix")
        self._join(prefixes=[prefix], **init_info)

    def start_weight_update(self) -> None:
        self._begin()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._receive(Message(**update_info))

    def finish_weight_update(self, weight_version: str) -> None:
        self._finish(weight_version)

    def collective_rpc(self, method: str, args=(), timeout=0.0) -> Any:
        if method in ("load_messages", "reload_from_folder"):
            return self._load(Path(args[0]))
        if method not in ("weight_types", "weight_checksums") or (self.misdeed and self.misdeed.what == "silent"):
            return None
        is_outline = method == "weight_types"
        return {
            "results": [
                json.dumps([_report(name, tensor, is_outline=is_outline) for name, tensor in worker.tensors.items()])
                for worker in self.workers
            ]
        }

    def _load(self, folder: Path) -> None:
        for worker in self.workers:
            worker.staged = {}
            worker.copy.begin()
            for message, data in messages_in(folder):
                whole = worker.copy.receive(message, data)
                for name, tensor in whole if self.digests else ():
                    worker.tensors[name] = tensor.clone()
                    worker.staged[name] = digest(tensor)
            worker.copy.finish()
            worker.whole = worker.staged

    def update_weight_version(self, new_version: str, **_: Any) -> None:
        self.label = new_version

    # SGLang's words.

    def init_weights_update_group(
        self, master_address, master_port, rank_offset, world_size, group_name, backend
    ) -> None:
        prefixes = [group_name, f"{group_name}/", "cpu/"]
        self._join(master_address, master_port, prefixes, backend, rank_offset, world_size, 60.0)

    def destroy_weights_update_group(self, group_name: str) -> None:
        self._leave()

    def begin_weight_update(self) -> None:
        self._begin()

    def end_weight_update(self) -> None:
        self._finish(None)

    def update_weights_from_tensor(self, serialized_named_tensors: list[str], load_format: str, **_: Any) -> None:
        """What serving/sglang_weights.py does in each worker."""
        assert self.in_session and load_format in self.loaders
        ((_, asked),) = pickle.loads(base64.b64decode(serialized_named_tensors[0]))
        request = json.loads(bytes(asked.tolist()))
        for worker in self.workers:
            rows = [_report(*named, is_outline=request["is_outline"]) for named in worker.tensors.items()]
            store = TCPStore(request["address"], request["port"], is_master=False)
            store.set(f"answer/{store.add('answers', 1) - 1}", json.dumps({"report": json.dumps(rows)}))

    def update_weights_from_distributed(self, names, dtypes, shapes, **_: Any) -> None:
        kinds = [getattr(torch, dtype) for dtype in dtypes]
        size = sum(math.prod(shape) * kind.itemsize for shape, kind in zip(shapes, kinds, strict=True))
        self._receive(Message(names, dtypes, shapes, size))


def _report(name: str, tensor: torch.Tensor, *, is_outline: bool) -> list[Any]:
    part = HeldPart(name, name, tensor)
    return part.outline if is_outline else part.fields
