"""Prompt sets, tokenizers, and packing into micro-batches."""

from megatron_fork.data.packing import MicroBatch, deal, pack
from megatron_fork.data.source import Config, PromptSource, load_prompts

__all__ = ["Config", "MicroBatch", "PromptSource", "deal", "load_prompts", "pack"]
