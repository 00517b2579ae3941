"""Which tokens carry gradient: the exact distributed k-th largest, and every named rule over it."""

from megatron_fork.selection.config import PRESETS, Config
from megatron_fork.selection.kth import kth_largest
from megatron_fork.selection.select import Selection, select_tokens

__all__ = ["PRESETS", "Config", "Selection", "kth_largest", "select_tokens"]
