"""Prompt sets, tokenizers, and packing into micro-batches."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.data.columns import Columns
    from megatron_fork.data.config import GENERATED, DataConfig
    from megatron_fork.data.generated import tokenizer_of_task
    from megatron_fork.data.overlap import RowFile, decontaminate, deduplicate, has_preset, named_file, summary
    from megatron_fork.data.packing import MicroBatch, RowShape, deal, micro_batches_needed, pack
    from megatron_fork.data.presets import PRESETS
    from megatron_fork.data.responses import GivenResponse, columns_named, read_responses
    from megatron_fork.data.source import PromptCounts, PromptSource, load_prompts
else:
    __getattr__ = opened(__name__, __file__, former={"Config": "DataConfig"})

__all__ = [
    "GENERATED",
    "PRESETS",
    "Columns",
    "DataConfig",
    "GivenResponse",
    "MicroBatch",
    "PromptCounts",
    "PromptSource",
    "RowFile",
    "RowShape",
    "columns_named",
    "deal",
    "decontaminate",
    "deduplicate",
    "has_preset",
    "load_prompts",
    "micro_batches_needed",
    "named_file",
    "pack",
    "read_responses",
    "summary",
    "tokenizer_of_task",
]
