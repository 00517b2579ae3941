"""Prompt sets, tokenizers, and packing into micro-batches."""

from megatron_fork.data.config import GENERATED, Config
from megatron_fork.data.packing import MicroBatch, RowShape, deal, micro_batches_needed, pack
from megatron_fork.data.presets import PRESETS
from megatron_fork.data.source import PromptCounts, PromptSource, load_prompts

__all__ = [
    "GENERATED",
    "PRESETS",
    "Config",
    "MicroBatch",
    "PromptCounts",
    "PromptSource",
    "RowShape",
    "deal",
    "load_prompts",
    "micro_batches_needed",
    "pack",
]
