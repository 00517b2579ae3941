"""The functions of `elementwise` as Triton kernels for a GPU: each reads its inputs once and writes its results once.

Design note: bytes moved for a token in bf16, with n the width of a norm, f that of the MLP, q and k those of all query and of
all key heads:

                             reads            writes             Qwen3-0.6B, 8B (kB)   at 3.35 TB/s (ns), predicted
    norm, and again          2 n              2 n                4.1, 16.4             1.2, 4.9
    norm, backward           4 n              2 n                6.1, 24.6             1.8, 7.3
    SwiGLU, and again        4 f              2 f                18.4, 73.7            5.5, 22
    SwiGLU, backward         6 f              4 f                30.7, 123             9.2, 37
    heads, and again         2 (q + k)        2 (q + k)          12.3, 20.5            3.7, 6.1
    heads, backward          4 (q + k) + 2 k  2 (q + 2 k)        22.5, 34.8            6.7, 10

and some 4 bytes a row for its root mean square, and 384 bytes a token for the partial gradients of the weights of head norms.
A layer runs two norms forward, two again and two backward, and one of each other kernel: 43 ns a token of 0.6B and 138 of
8B, where its products take 190 and 2,340 at half of an H100's dense peak. Nothing here is timed.

Liger-Kernel's functions do the same with other layouts. Its SwiGLU wants gate and up apart, so that both halves of Megatron's
one projection would be copied and kept once more (4 f bytes); its rotation has no norm and does not split the projection.
"""

from __future__ import annotations

from megatron_fork.models.layers.triton_heads import rotate_heads, rotate_heads_again, rotate_heads_backward
from megatron_fork.models.layers.triton_rows import (
    rms_norm,
    rms_norm_again,
    rms_norm_backward,
    swiglu,
    swiglu_again,
    swiglu_backward,
)

__all__ = [
    "rms_norm",
    "rms_norm_again",
    "rms_norm_backward",
    "rotate_heads",
    "rotate_heads_again",
    "rotate_heads_backward",
    "swiglu",
    "swiglu_again",
    "swiglu_backward",
]
