"""What an engine's worker holds, in its own layout, cut back to Hugging Face's tensors, and the checksum of each part.

Not the tensors that arrived: a loader may have put them elsewhere, and on a CPU layers compute with a packed copy, which can be
an old one. Such a layer is asked for its weights: of the identity it makes their transpose, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_fork.serving.checksums import checksum


@dataclass(frozen=True)
class HeldPart:
    """The part of a Hugging Face tensor that one worker holds; `row` and `column` are where it begins in that tensor."""

    tensor: str
    """The tensor's name."""
    place: str
    """Where the worker has it: a tied head is a second place of the embedding."""
    part: Tensor
    row: int = 0
    column: int = 0
    columns: int | None = None

    @property
    def outline(self) -> list[object]:
        """As `fields`, without extent and checksum."""
        return [self.tensor, self.place, type_of(self.part), 0, 0, 0, 0, "0"]

    @property
    def fields(self) -> list[object]:
        """As JSON has them: its names, type, extent and checksum."""
        sum_ = checksum(self.part, row=self.row, column=self.column, columns=self.columns)
        width = self.part.shape[-1] if self.part.ndim > 1 else 1
        rows = self.part.numel() // max(1, width)
        return [self.tensor, self.place, type_of(self.part), self.row, self.column, rows, width, f"{sum_:016x}"]


def type_of(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


RankOf = Callable[[torch.nn.Module, bool], int]
"""A worker's rank among those that share a layer, or, if that is asked for, its keys and values."""
# What both engines make of three and of two layers of Hugging Face's.
_FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def rank_in_vllm(module: torch.nn.Module, of_keys: bool) -> int:
    return int(vars(module).get("tp_rank", 0))


@torch.no_grad()
def held_parts(model: torch.nn.Module, *, outline: bool = False, rank_of: RankOf = rank_in_vllm) -> Iterator[HeldPart]:
    """All that can be cut back, which quantised layers and some layouts of experts cannot. `outline`: names and types alone."""
    modules = dict(model.named_modules(remove_duplicate=False))
    embedding = modules.get("model.embed_tokens")
    for name, module in modules.items():
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        if vars(module).get("use_intel_amx_backend"):  # packed for that, and nobody can look into it
            continue
        if "w13_weight" in own or "w2_weight" in own:
            yield from _of_experts(name, module, own)
            continue
        is_tied = name == "lm_head" and embedding is not None and _is_tied(module, embedding)
        for kind, held in own.items():
            if kind not in ("weight", "bias"):
                continue
            part = _computed_with(module, held, outline=outline) if kind == "weight" else held
            if part.ndim == 0 or not part.numel():
                continue
            for whole, place, cut, row, column, columns in _cut(name, kind, module, part, rank_of):
                yield HeldPart(f"model.embed_tokens.{kind}" if is_tied else whole, place, cut, row, column, columns)


def _is_tied(head: torch.nn.Module, embedding: torch.nn.Module) -> bool:
    return head is embedding or head.weight.data_ptr() == embedding.weight.data_ptr()  # type: ignore[operator]


def _computed_with(module: torch.nn.Module, held: Tensor, *, outline: bool) -> Tensor:
    """The weights `[out, in]` of a layer that may compute with a packed copy of them."""
    linear = vars(module).get("cpu_linear")
    if linear is None:
        return held
    width = vars(module)["input_size_per_partition"] if held.ndim != 2 else held.shape[1]
    if outline:
        rows = sum(vars(module)["output_partition_sizes"]) if held.ndim != 2 else held.shape[0]
        return torch.empty(rows, width, dtype=held.dtype, device="meta")
    identity = torch.eye(width, dtype=held.dtype, device=held.device)
    made: Tensor = linear(identity, held, None)
    return made.t()


def _cut(
    name: str, kind: str, module: torch.nn.Module, part: Tensor, rank_of: RankOf
) -> Iterator[tuple[str, str, Tensor, int, int, int | None]]:
    """(tensor, place, part, row, column, columns) of one parameter."""
    settings = vars(module)
    before, _, last = name.rpartition(".")
    indices = settings.get("shard_indices")
    if indices is not None:  # rows past the vocabulary are padding
        yield (
            f"{name}.{kind}",
            f"{name}.{kind}",
            part[: indices.num_org_elements],
            indices.org_vocab_start_index,
            0,
            None,
        )
        return
    sizes = settings.get("output_partition_sizes") or [part.shape[0]]
    names = _FUSED.get(last, [last])
    # A bias is not cut with the columns.
    is_row_parallel = kind == "weight" and settings.get("input_size_per_partition", 0) != settings.get("input_size", 0)
    if len(names) != len(sizes):
        return
    for place, (size, piece) in enumerate(zip(sizes, part.split(sizes), strict=True)):
        whole = ".".join(filter(None, [before, names[place], kind]))
        if is_row_parallel:
            yield whole, whole, piece, 0, rank_of(module, False) * piece.shape[-1], settings["input_size"]
            continue
        # Keys and values are held by several ranks where there are fewer of them than ranks.
        replicas = settings.get("num_kv_head_replicas", 1) if place else 1
        is_split = "output_partition_sizes" in settings and sum(sizes) != settings.get("output_size")
        row = rank_of(module, place > 0) // replicas * size if is_split else 0
        yield whole, whole, piece, row, 0, None


def _of_experts(name: str, module: torch.nn.Module, own: dict[str, Tensor]) -> Iterator[HeldPart]:
    """Of fused experts in the plain layout `[experts, rows, columns]`, on a CPU.

    Some kernels of GPUs keep up before gate in the same shape, and nothing of the module says so.
    """
    settings = vars(module)
    if settings.get("use_ep") or settings.get("tp_size", 1) != 1 or not {"w13_weight", "w2_weight"} <= own.keys():
        return
    both, down = own["w13_weight"], own["w2_weight"]
    if both.device.type != "cpu":
        return
    if both.ndim != 3 or down.ndim != 3 or both.shape[1] != 2 * down.shape[2] or both.shape[2] != down.shape[1]:
        return
    for expert in range(len(both)):
        gate, up = both[expert].chunk(2)
        for what, part in (("gate_proj", gate), ("up_proj", up), ("down_proj", down[expert])):
            whole = f"{name}.{expert}.{what}.weight"
            yield HeldPart(whole, whole, part)
