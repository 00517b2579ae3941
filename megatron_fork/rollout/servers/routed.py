"""The experts that a server says it sent each token to, read from what the engines send and checked.

Both send them with the end of a response, for every token that the model has read: prompt and response but for the last token.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from megatron_fork.rollout.servers.wire import quoted, void

_NEEDS = "was it started with --enable-return-routed-experts (docs/engines.md)?"


class ExpertsShape(NamedTuple):
    """Of the policy's model: its layers, how many experts a token goes to in each, and how many there are."""

    layers: int
    topk: int
    experts: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> ExpertsShape:
        return cls(config.num_hidden_layers, config.num_experts_per_tok, config.num_experts)

    @property
    def numbers(self) -> int:
        """Of each token."""
        return self.layers * self.topk


def experts_of(read: Callable[[], Tensor] | None, shape: ExpertsShape, tokens: int) -> Tensor:
    """`[tokens, layers, k]` int16; raises `ServerFault` if what `read` gives cannot be the experts of `tokens` tokens."""
    if read is None:
        raise void(f"it does not say which experts the tokens went to: {_NEEDS}")
    chosen = read()
    wanted = (tokens, shape.layers, shape.topk)
    if chosen.dim() == 1 and chosen.numel() == tokens * shape.numbers:  # SGLang's have no shape
        chosen = chosen.view(wanted)
    if tuple(chosen.shape) != wanted:
        raise void(
            f"it sent experts of shape {list(chosen.shape)}, not {list(wanted)}: does it serve the policy's model?"
        )
    if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < shape.experts:
        raise void(
            f"it sent experts from {int(chosen.min())} to {int(chosen.max())} of a model that has {shape.experts}"
        )
    ordered = chosen.sort(-1).values
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        raise void("it sent a token to the same expert twice")
    return chosen.to(torch.int16)


def of_npy(sent: object) -> Tensor:
    """vLLM's: the bytes of a `.npy` file in base64."""
    try:
        found = np.load(io.BytesIO(_bytes(sent)), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise void(f"it sent experts that are no array: {quoted(str(error), 60)}") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "iu" or found.dtype.itemsize > 4:
        raise void("it sent experts that are no whole numbers")
    return torch.from_numpy(found.astype(np.int64))


def of_int32(sent: object) -> Tensor:
    """SGLang's: int32 in base64, without a shape."""
    raw = _bytes(sent)
    if len(raw) % 4:
        raise void(f"it sent {len(raw)} bytes of experts, which are no int32")
    return torch.from_numpy(np.frombuffer(raw, dtype="<i4").astype(np.int64))


def _bytes(sent: object) -> bytes:
    if not isinstance(sent, str):
        raise void(f"it sent {quoted(sent, 60)} instead of experts")
    try:
        return base64.b64decode(sent, validate=True)
    except (binascii.Error, ValueError) as error:
        raise void(f"it sent experts that are no base64: {quoted(str(error), 60)}") from error
