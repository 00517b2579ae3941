"""Prompt sets, tokenizers, and packing into micro-batches."""

from megatron_fork.data.packing import MicroBatch, RowShape, deal, micro_batches_needed, pack
from megatron_fork.data.source import Config, PromptSource, load_prompts

__all__ = [
    "Config",
    "MicroBatch",
    "PromptSource",
    "RowShape",
    "deal",
    "load_prompts",
    "micro_batches_needed",
    "pack",
]
