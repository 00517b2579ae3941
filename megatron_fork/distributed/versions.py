"""What differs between the supported versions of megatron-core, and of torch; no other file distinguishes them.

|                              | 0.16, 0.17       | 0.18, 0.19                                          |
|------------------------------|------------------|-----------------------------------------------------|
| experts in a layer's spec    | a `ModuleSpec`   | a `functools.partial` of their module               |
| MLP in a layer's spec        | a `ModuleSpec`   | a `functools.partial` of its `as_mlp_submodule`     |
| writer of checkpoints        | Megatron's own   | `nvidia-resiliency-ext`, not installed; or its own  |
| gaps between packed rows     | found by itself  | `pad_between_seqs` says (0.19)                      |
| optimizer in host memory     | asks for Transformer Engine (0.16) | does without                      |

Differences that need no code: from 0.17 on Python 3.12 is needed, and a router gets an argument for layers of multi-token
prediction, which `PackedRouter` passes on; from 0.18 on `GPTModel` has a hook for what follows its last layer, but overriding
its last step works in all versions; 0.19 deprecates `GPTModel`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.utils import get_te_version
from torch import Tensor


def replace_experts(layer: ModuleSpec, module: type[MoELayer], router: Callable[..., Any]) -> None:
    """Change the spec of a transformer layer so that its experts are built as `module` with `router`."""
    parts: Any = layer.submodules
    experts: Any = parts.mlp
    if isinstance(experts, functools.partial):
        build: Callable[..., Any] = module
        parts.mlp = functools.partial(build, *experts.args, **experts.keywords)
        experts.keywords["submodules"].router = router
    else:
        experts.module = module
        experts.submodules.router = router


def replace_mlp(layer: ModuleSpec, module: type[MLP]) -> None:
    """Change the spec of a dense transformer layer so that its MLP is built as `module`, which has linear layers of its own."""
    parts: Any = layer.submodules
    if isinstance(parts.mlp, functools.partial):
        parts.mlp = functools.partial(module.as_mlp_submodule, *parts.mlp.args, **parts.mlp.keywords)
    else:
        parts.mlp = module


@functools.cache
def varlen_attention_takes() -> frozenset[str]:
    """The parameters of torch's attention over sequences of several lengths; none in a torch without it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def own_writer() -> dict[str, str]:
    """Keywords that make `dist_checkpointing.save` use Megatron's own writer, whatever its default is."""
    choice = "async_strategy"
    return {choice: "mcore"} if choice in inspect.signature(dist_checkpointing.save).parameters else {}


def packed_fields(cumulative_lengths: Tensor, longest: int, *, ranks: int) -> dict[str, Any]:
    """The fields of `PackedSeqParams` for a packed row without gaps.

    Transformer Engine refuses a row that context ranks share without its "padded" lengths, here the same ones. Not told that
    there are no gaps, it compares the two in every layer, and the host waits for the GPU.

    Args:
        cumulative_lengths: `[sequences + 1]` int32, of the whole row, also where ranks share it.
        longest: the longest sequence of the whole row.
        ranks: context-parallel ranks.

    """
    names = {field.name for field in dataclasses.fields(PackedSeqParams)}
    return {
        "qkv_format": "thd",
        "cu_seqlens_q": cumulative_lengths,
        "cu_seqlens_kv": cumulative_lengths,
        "cu_seqlens_q_padded": cumulative_lengths if ranks > 1 else None,
        "cu_seqlens_kv_padded": cumulative_lengths if ranks > 1 else None,
        "max_seqlen_q": longest,
        "max_seqlen_kv": longest,
        **({"pad_between_seqs": False} if "pad_between_seqs" in names else {}),
    }


def can_offload_optimizer() -> bool:
    """Whether Megatron's optimizer may be in host memory: 0.16 compares Transformer Engine's version, and must have one."""
    return get_te_version() is not None
