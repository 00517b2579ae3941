"""Transformer Engine's layers without a GPU: its Python runs as it is, on stand-ins for the kernels that it calls.

What this can show: which modules the spec builds, under which names and shapes, what they are handed (packed lengths, groups,
offsets), their collectives under every layout, and where their gradients go. What it cannot: a kernel's result. The stand-ins
are this file's own torch; attention is handed to this project's, once what Transformer Engine asks of it has been checked.
"""

from __future__ import annotations

import importlib.machinery
import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

REASON = "needs the package transformer_engine, and no GPU"


def cannot_run() -> bool:
    """Without the package there is nothing to run, and on a GPU the kernels themselves are compared (`test_fused_kernels`)."""
    found = importlib.machinery.PathFinder.find_spec("transformer_engine_torch")
    return found is None or torch.cuda.is_available()


def product(
    a: Tensor, a_transposed: bool, b: Tensor, b_transposed: bool, out: Tensor | None, *rest: Any, **_: Any
) -> Any:
    """CuBLAS's product of column-major operands; read by rows it is `op(b) @ op(a)`, accumulated in float32."""
    _, out_dtype, bias, _, _, _, is_gradient, _, _, accumulates, _ = rest
    left, right = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (b, a))
    result = (left.T if b_transposed else left).float() @ (right.T if a_transposed else right).float()
    bias_gradient = None
    if bias is not None and is_gradient:
        bias_gradient = left.float().sum(0).to(bias.dtype)
    elif bias is not None:
        result += bias.float()
    if out is None:
        from transformer_engine.pytorch.constants import TE_DType

        dtype = next((torch_dtype for torch_dtype, theirs in TE_DType.items() if theirs == out_dtype), b.dtype)
        shape = result.shape if b_transposed else (*b.shape[:-1], result.shape[-1])
        return result.to(dtype).view(shape), bias_gradient, None, None
    if accumulates:
        out += result.to(out.dtype).view_as(out)
    else:
        out.copy_(result.view_as(out))
    return out, bias_gradient, None, None


def norm(x: Tensor, weight: Tensor, epsilon: float, out: Tensor | None, *_: Any) -> tuple[Tensor, None, Tensor]:
    scale = (x.float().square().mean(-1) + epsilon).rsqrt()
    normed = (x.float() * scale[..., None] * weight.float()).to(x.dtype)
    return normed if out is None else out.copy_(normed), None, scale


def norm_backward(gradient: Tensor, x: Tensor, scale: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    gradient = gradient.reshape(x.shape).float()
    normed = x.float() * scale[..., None]
    of_normed = gradient * weight.float()
    d_x = scale[..., None] * (of_normed - normed * (of_normed * normed).mean(-1, keepdim=True))
    return d_x.to(x.dtype), (gradient * normed).flatten(0, -2).sum(0).to(weight.dtype)


def _rotate(x: Tensor, angles: Tensor, lengths: Tensor | None, ranks: int, rank: int, sign: float) -> Tensor:
    """Rotated by the angles of each token's place; a context rank holds two chunks of every sequence."""
    assert lengths is not None, "the model packs every row"
    places = []
    for length in lengths.diff().tolist():
        chunk = length // (2 * ranks)
        first, second = rank * chunk, (2 * ranks - 1 - rank) * chunk
        places.append(torch.arange(length) if ranks == 1 else torch.arange(chunk) + first)
        if ranks > 1:
            places.append(torch.arange(chunk) + second)
    angle = angles[torch.cat(places), 0]  # [tokens, 1, d]
    assert angle.shape[0] == x.shape[0], "the tokens are those of the lengths"
    left, right = x.float().chunk(2, dim=-1)
    turned = torch.cat((-right, left), dim=-1)
    return (x.float() * angle.cos() + sign * turned * angle.sin()).to(x.dtype)


def rotate(x: Tensor, angles: Tensor, _start: Any, _format: Any, _interleaved: bool, *where: Any) -> Tensor:
    return _rotate(x, angles, *where, sign=1.0)


def rotate_backward(x: Tensor, angles: Tensor, _start: Any, _format: Any, _interleaved: bool, *where: Any) -> Tensor:
    return _rotate(x, angles, *where, sign=-1.0)


def attend(self: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any = None, **asked: Any) -> Tensor:
    """What `DotProductAttention.forward` refuses is refused here, and then this project's attention computes."""
    from megatron.core.packed_seq_params import PackedSeqParams

    from megatron_fork.models.attention import PackedAttention

    assert asked["qkv_format"] == "thd" and "padding" in asked["attn_mask_type"]
    assert query.dtype == torch.bfloat16, "no kernel over packed rows takes another type"
    lengths = asked["cu_seqlens_q"]
    assert lengths.dtype == asked["cu_seqlens_kv"].dtype == torch.int32
    ranks = self.cp_group.size() if self.cp_group is not None else 1
    padded = asked.get("cu_seqlens_q_padded")
    if ranks > 1:
        assert padded is not None and asked.get("cu_seqlens_kv_padded") is not None, "Transformer Engine asserts this"
    assert asked.get("pad_between_seqs") is False or padded is None, (
        "every layer would wait for the GPU to compare lengths"
    )
    groups: Any = SimpleNamespace(cp=self.cp_group)
    attention = PackedAttention(self.config, self.layer_number, None, "self", pg_collection=groups)
    packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=lengths, cu_seqlens_kv=lengths)
    return attention(query, key, value, packed_seq_params=packed)


def prepare(self: Any, x: Tensor, num_gemms: int = 1, **_: Any) -> Tensor:
    """`prepare_forward` without its question for CUDA, and without 8 bits."""
    self.allow_different_data_and_param_types = False
    self.set_activation_dtype(x)
    self.init_fp8_metadata(num_gemms=num_gemms)
    assert not self.fp8, "a stand-in multiplies in bfloat16"
    return x.contiguous()


def stand_in() -> None:
    """Put the stand-ins in place, in this process and for good."""
    import transformer_engine.pytorch as te
    import transformer_engine_torch as kernels
    from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

    assert "megatron" not in sys.modules, "Megatron must find Transformer Engine, and not its optimizer"
    sys.modules["transformer_engine.pytorch.optimizers"] = None  # type: ignore[assignment]

    from megatron_fork.distributed import compatibility
    from megatron_fork.distributed.cpu_view import CpuTorch
    from megatron_fork.models import compute

    compatibility.install()

    view = CpuTorch()
    view.cuda.is_available = lambda: True  # type: ignore[method-assign]
    view.cuda.get_device_properties = lambda *_: SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    view.cuda.get_device_capability = lambda *_: (9, 0)
    view.cuda.is_current_stream_capturing = lambda: False
    ours = {
        "generic_gemm": product,
        "rmsnorm_fwd": norm,
        "rmsnorm_bwd": norm_backward,
        "fused_rope_forward": rotate,
        "fused_rope_backward": rotate_backward,
    }
    theirs = {name: getattr(kernels, name) for name in ours}
    for name, module in list(sys.modules.items()):
        if module is None or not name.startswith(("transformer_engine.", "transformer_engine_torch")):
            continue
        for attribute, value in list(vars(module).items()):
            if value is torch:
                setattr(module, attribute, view)
            elif attribute in ours and value is theirs[attribute]:
                setattr(module, attribute, ours[attribute])
    te.DotProductAttention.forward = attend
    TransformerEngineBaseModule.prepare_forward = prepare
    compute.unusable = lambda: ""
