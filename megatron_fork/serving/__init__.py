"""Code that runs inside the engines' own processes, and code that both sides of a weight transfer use.

An engine's environment has torch and the engine, but not megatron-core or this project's version of transformers: code here
only imports torch, `vocab_parallel`, the types of settings and, in the modules named after it, the engine.
"""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.serving.checksums import checksum
    from megatron_fork.serving.entropy_temperature import EntropyTemperature, scale_by_entropy
    from megatron_fork.serving.kept_memory import KeptMemory
    from megatron_fork.serving.messages import Message, described, write_message
    from megatron_fork.serving.transfer import (
        Backend,
        TransferGroup,
        TransferStore,
        address_towards,
        is_open,
        join_transfer,
    )
    from megatron_fork.serving.weight_copy import WeightCopy
else:
    __getattr__ = opened(__name__, __file__)

__all__ = [
    "Backend",
    "EntropyTemperature",
    "KeptMemory",
    "Message",
    "TransferGroup",
    "TransferStore",
    "WeightCopy",
    "address_towards",
    "checksum",
    "described",
    "is_open",
    "join_transfer",
    "scale_by_entropy",
    "write_message",
]
