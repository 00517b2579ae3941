"""Operations and bytes of one transformer layer on a GPU, counted by running its real modules on tensors without memory.

The layer is built and run on the meta device. Every matrix product and every operation of torch that moves bytes is seen as it
is dispatched. What is a kernel of its own on a GPU, and would be several operations here, is replaced by a function that counts
one launch with the bytes of its inputs and results: the functions of `models.layers.elementwise`, and attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import PretrainedConfig

from megatron_fork.distributed import ParallelConfig, parallel_layout
from megatron_fork.models import ComputeConfig, PackedRow, build_model
from megatron_fork.models.attention import PackedAttention
from megatron_fork.models.layers.mlp import GatedMlp
from megatron_fork.models.layers.norm import RMSNorm
from megatron_fork.models.layers.self_attention import PackedSelfAttention

Layers = Literal["local", "transformer_engine", "torch"]
Recompute = Literal["none", "full"]
Kind = Literal["product", "attention", "sweep"]
Pass = Literal["forward", "backward"]
_PRODUCTS = {"mm", "addmm", "bmm"}


@dataclass
class Work:
    """Launches of one kind, their operations, and the bytes that they read and write."""

    launches: int = 0
    operations: float = 0.0
    bytes: float = 0.0

    def __iadd__(self, other: Work) -> Work:
        self.launches += other.launches
        self.operations += other.operations
        self.bytes += other.bytes
        return self


class Book(TorchDispatchMode):
    """Work by pass, kind and name, of everything that runs while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.now: Pass = "forward"
        self.entries: dict[tuple[Pass, Kind, str], Work] = {}

    def add(self, kind: Kind, name: str, *moved: Tensor, operations: float = 0.0) -> None:
        """One launch that reads or writes the tensors `moved`."""
        entry = self.entries.setdefault((self.now, kind, name), Work())
        entry += Work(1, operations, sum(_bytes(each) for each in moved))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        outputs = [each for each in tree_flatten(result)[0] if isinstance(each, Tensor)]
        if name in _PRODUCTS:
            inner = inputs[-2].shape[-1]
            self.add("product", name, *inputs, *outputs, operations=2.0 * outputs[0].numel() * inner)
        elif outputs and not _only_names_memory(func, name):
            self.add("sweep", name, *inputs, *outputs)
        return result

    def total(self, now: Pass, kind: Kind) -> Work:
        """Of all names."""
        found = Work()
        for (of_pass, of_kind, _), entry in self.entries.items():
            if (of_pass, of_kind) == (now, kind):
                found += entry
        return found


def _only_names_memory(func: Any, name: str) -> bool:
    """Whether an operation moves nothing: views, and memory that is handed out."""
    views = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
    return views or name.startswith(("empty", "new_empty", "detach", "resize", "_unsafe_view", "set_"))


def _bytes(tensor: Tensor) -> float:
    """Of what a kernel reads of it: a dimension that is repeated is read once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return float(count * tensor.element_size())


class CountedKernels:
    """The functions of `models.layers.elementwise`, one launch each, as the Triton kernels have them.

    `apart`: norms of queries and keys, rotations and the cutting of the projection are launches of their own, as in Transformer
    Engine's layers, where Megatron's modules call them one after the other.
    """

    def __init__(self, book: Book, *, apart: bool) -> None:
        self._book, self._apart = book, apart

    def rms_norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        result, inverse = torch.empty_like(rows), rows.new_empty(rows.shape[:-1], dtype=torch.float32)
        self._book.add("sweep", "norm", rows, result, inverse)
        return result, inverse

    def rms_norm_again(self, rows: Tensor, weight: Tensor, inverse_rms: Tensor, into: Tensor) -> None:
        self._book.add("sweep", "norm again", rows, into)

    def rms_norm_backward(
        self, grad: Tensor, rows: Tensor, weight: Tensor, inverse_rms: Tensor
    ) -> tuple[Tensor, Tensor]:
        result = torch.empty_like(rows)
        self._book.add("sweep", "norm backward", grad, rows, result)
        return result, torch.empty_like(weight)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        result = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
        self._book.add("sweep", "SwiGLU", gate_up, result)
        return result

    def swiglu_again(self, gate_up: Tensor, into: Tensor) -> None:
        self._book.add("sweep", "SwiGLU again", gate_up, into)

    def swiglu_backward(self, grad: Tensor, gate_up: Tensor) -> Tensor:
        result = torch.empty_like(gate_up)
        self._book.add("sweep", "SwiGLU backward", grad, gate_up, result)
        return result

    def rotate_heads(
        self, heads_tgsd: Tensor, cosine_th: Tensor, sine_th: Tensor, norms: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        tokens, groups, slots, width = heads_tgsd.shape
        query = heads_tgsd.new_empty(tokens, groups * (slots - 2), width)
        key = heads_tgsd.new_empty(tokens, groups, width)
        inverse = heads_tgsd.new_empty(tokens, groups, slots - 1, dtype=torch.float32)
        if self._apart:
            self._book.add("sweep", "cutting heads", heads_tgsd, heads_tgsd)
            for each in (query, key):
                self._book.add("sweep", "norm of heads", each, each)
                self._book.add("sweep", "rotation", each, each)
        else:
            self._book.add("sweep", "heads", query, query, key, key, cosine_th, sine_th, inverse)
        return query, key, inverse

    def rotate_heads_again(
        self,
        heads_tgsd: Tensor,
        cosine_th: Tensor,
        sine_th: Tensor,
        norms: Any,
        inverse_rms: Tensor | None,
        query: Tensor,
        key: Tensor,
    ) -> None:
        self._book.add("sweep", "heads again", query, query, key, key, cosine_th, sine_th)

    def rotate_heads_backward(
        self,
        grads: tuple[Tensor, Tensor, Tensor],
        heads_tgsd: Tensor,
        cosine_th: Tensor,
        sine_th: Tensor,
        norms: Any,
        inverse_rms: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        result = torch.empty_like(heads_tgsd)
        if self._apart:
            for each in grads[:2]:
                self._book.add("sweep", "rotation backward", each, each)
                self._book.add("sweep", "norm of heads backward", each, each, each)
            self._book.add("sweep", "joining heads", heads_tgsd, heads_tgsd)
        else:
            self._book.add("sweep", "heads backward", *grads, heads_tgsd, result, cosine_th, sine_th)
        weights = (None, None) if norms is None else (torch.empty_like(norms.query), torch.empty_like(norms.key))
        return result, *weights


class _Attention(torch.autograd.Function):
    """Causal attention of one sequence: half of the scores, two products of them forward and five backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, length: int, book: Book) -> Tensor:
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value)
        ctx.length, ctx.book = length, book
        book.add("attention", "attention", query, key, value, result, operations=2.0 * length * query.numel())
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        moved = (query, query, query, grad, key, key, value, value)
        ctx.book.add("attention", "attention backward", *moved, operations=5.0 * ctx.length * query.numel())
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None, None


class CountedAttention:
    """A kernel of `models.attention_kernels`."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def attend(self, query: Tensor, key: Tensor, value: Tensor, row: Any, scale: float | None) -> Tensor:
        attended: Tensor = _Attention.apply(query, key, value, len(query), self._book)
        return attended


def layer_work(config: PretrainedConfig, layers: Layers, recompute: Recompute, tokens: int) -> tuple[Book, int]:
    """Work of one layer of `config`'s model in bfloat16 on one sequence and one rank, and the number of its parameters.

    Backward is counted with what it computes again between products. With `recompute` full it is that of the layer alone: the
    forward pass that comes before it is to be added.
    """
    compute = ComputeConfig(backend="local", attention="sdpa", elementwise="torch", recompute=recompute)
    one_layer = type(config)(**{**config.to_dict(), "num_hidden_layers": 1, "vocab_size": 512, "layer_types": None})
    book = Book()
    with parallel_layout(ParallelConfig()) as layout, torch.device("meta"):
        model = build_model(one_layer, layout.config, dtype=torch.bfloat16, compute=compute)
        (layer,) = model.decoder.layers
        if layers == "local":
            model.config.elementwise_kernels = "triton"  # by which a layer decides what it keeps
        for module in layer.modules():
            if isinstance(module, RMSNorm | GatedMlp | PackedSelfAttention) and layers != "torch":
                module.kernels = CountedKernels(book, apart=layers == "transformer_engine")
            if isinstance(module, PackedAttention):
                attention: Any = module
                attention.kernel = CountedAttention(book)
        hidden = torch.empty(tokens, 1, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
        row = PackedRow.of((tokens,), torch.empty(2, dtype=torch.int32), torch.empty(tokens, dtype=torch.long))
        angles = torch.empty(tokens, 1, 1, config.head_dim)
        row.rotation(angles, 1.0, torch.bfloat16)  # once for all layers of a model, and not counted
        with book:
            result, _ = layer(hidden, None, rotary_pos_emb=angles, packed_seq_params=row)
            book.now = "backward"
            result.backward(torch.empty_like(result))
    return book, sum(each.numel() for each in layer.parameters())
