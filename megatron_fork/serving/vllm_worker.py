"""vLLM's side of a weight update: receives buckets over torch's gloo or nccl, or from the process that it runs in.

    vllm serve ... --worker-extension-cls megatron_fork.serving.vllm_worker.WeightReceiver
        --weight-transfer-config '{"backend": "megatron_fork"}'

vLLM's own nccl backend needs vLLM on the trainer's side too, and has no time-out; this one only needs torch there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from vllm.config import set_current_vllm_config
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from megatron_fork.serving.held import held_parts
from megatron_fork.serving.kept_memory import KeptMemory
from megatron_fork.serving.messages import Message, messages_in, unpacked
from megatron_fork.serving.transfer import Backend, TransferGroup, address_towards, is_open, join_transfer
from megatron_fork.serving.weight_copy import WeightCopy

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

NAME = "megatron_fork"


@dataclass
class Rendezvous(WeightTransferInitInfo):
    """Where the trainer waits, and the rank of this server's first worker among `size`."""

    address: str
    port: int
    prefix: str
    backend: Backend
    offset: int
    size: int
    timeout: float


@dataclass
class Bucket(WeightTransferUpdateInfo):
    """The message that comes next over the group; its fields are those of `Message`."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    bytes: int
    version: str = ""
    base: str = ""
    changes: list[tuple[int, int]] = field(default_factory=list)
    is_compressed: bool = False


class BucketReceiver(WeightTransferEngine[Rendezvous, Bucket]):
    """One transfer session: start, any number of buckets, finish."""

    init_info_cls = Rendezvous
    update_info_cls = Bucket
    _group: TransferGroup | None = None
    _store: TCPStore | None = None
    _timeout = 0.0
    _memory = KeptMemory()  # the process's, which has one receiver
    copy: WeightCopy | None = None

    def init_transfer_engine(self, init_info: Rendezvous) -> None:
        """Join the trainer's group; an earlier group is closed."""
        self.shutdown()
        parallel = self.parallel_config
        rank = init_info.offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self._timeout = init_info.timeout
        self._store = TCPStore(
            init_info.address, init_info.port, is_master=False, timeout=timedelta(seconds=init_info.timeout)
        )
        self._group = join_transfer(
            PrefixStore(init_info.prefix, self._store),
            init_info.backend,
            rank=rank,
            size=init_info.size,
            address=address_towards(init_info.address, init_info.port),
            timeout=init_info.timeout,
        )

    def start_weight_update(self) -> None:
        self.copy = self.copy or WeightCopy()
        self.copy.begin()
        begin_loading(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Like the base class, but without its call to the accelerator, which a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Bucket) -> None:
        """Receive one bucket and load it; leaves the group and raises if a tensor does not arrive, or cannot be loaded."""
        if self._group is None or self._store is None:
            raise RuntimeError("no trainer has joined: POST /init_weight_transfer_engine comes first")
        try:
            self.model.load_weights(self._received(Message(**vars(update_info)), self._group, self._store))
        except BaseException:
            self.shutdown()
            raise

    def _received(self, message: Message, group: TransferGroup, store: TCPStore) -> list[tuple[str, Tensor]]:
        assert self.copy is not None, "an update has begun"
        self.copy.check(message)
        if torch.device(self.device).type == "cpu":
            data = self._memory.take(message.bytes)
        else:
            data = torch.empty(message.bytes, dtype=torch.uint8, device=self.device)
        if message.bytes:
            group.receive(data, timeout=self._timeout, is_wanted=lambda: is_open(store))
        return self.copy.receive(message, data) if message.version else unpacked(message, data)

    def finish_weight_update(self) -> None:
        assert self.copy is not None, "an update has begun"
        self.copy.finish()
        finish_loading(self.model, self.model_config)

    def shutdown(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None
        self._store = None


class WeightReceiver:
    """Mixed into vLLM's workers; importing this module registers the transfer backend."""

    model_runner: GPUModelRunner
    model_config: ModelConfig
    vllm_config: VllmConfig
    weight_transfer_engine: BucketReceiver | None
    _weight_update_active: bool

    def reload_from_folder(self, folder: str) -> None:
        """Load a Hugging Face folder in place of the present weights."""
        self.model_runner.reload_weights(weights_path=folder)
        repack_tied_head(self.model_runner.model)

    def load_messages(self, folder: str) -> None:
        """Load the messages in a folder: whole tensors, or changes since those that were loaded last."""
        receiver = self.weight_transfer_engine
        assert receiver is not None, "the server was started without --weight-transfer-config"
        receiver.copy = receiver.copy or WeightCopy()
        self.begin_bucket_update()
        receiver.copy.begin()
        for message, data in messages_in(Path(folder)):
            self.load_bucket(receiver.copy.receive(message, data))
        receiver.copy.finish()
        self.finish_bucket_update()

    def weight_types(self) -> str:
        """The tensors that `weight_checksums` speaks of, and their types, in its words and without a checksum; as JSON."""
        return json.dumps([held.outline for held in held_parts(self.model_runner.model, outline=True)])

    def weight_checksums(self) -> str:
        """Of each part of each tensor that this worker holds; as JSON."""
        return json.dumps([held.fields for held in held_parts(self.model_runner.model)])

    def abandon_weight_update(self) -> None:
        """End a session whose trainer is gone, so that the next can start; the weights then need an update."""
        self._weight_update_active = False
        if self.weight_transfer_engine is not None:
            self.weight_transfer_engine.reset_weight_update_target()

    def begin_bucket_update(self) -> None:
        """From here to `finish_bucket_update` weights come from this process."""
        with set_current_vllm_config(self.vllm_config):
            begin_loading(self.model_runner.model)

    @torch.no_grad()
    def load_bucket(self, bucket: list[tuple[str, Tensor]]) -> None:
        """Load whole tensors under Hugging Face names; they are kept until their layer is complete."""
        with set_current_vllm_config(self.vllm_config):
            self.model_runner.model.load_weights(bucket)

    @torch.no_grad()
    def finish_bucket_update(self) -> None:
        with set_current_vllm_config(self.vllm_config):
            finish_loading(self.model_runner.model, self.model_config)


def begin_loading(model: torch.nn.Module) -> None:
    """Prepare the model to load weights layer by layer into the memory of the present ones."""
    initialize_layerwise_reload(model)


def finish_loading(model: torch.nn.Module, config: ModelConfig) -> None:
    """Process what vLLM leaves for the end of a load, and the tied head, which it forgets."""
    finalize_layerwise_reload(model, config)
    repack_tied_head(model)


def repack_tied_head(model: torch.nn.Module) -> None:
    """Pack a tied LM head again: on the CPU vLLM 0.32 keeps the packed copy of the old embedding after a reload."""
    modules = dict(model.named_modules())
    head, embedding = modules.get("lm_head"), modules.get("model.embed_tokens")
    if head is None or embedding is None or head is embedding or "cpu_linear" not in vars(head):
        return
    if head.weight.data_ptr() == embedding.weight.data_ptr():
        head.quant_method.process_weights_after_loading(head)


if NAME not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(NAME, BucketReceiver)
