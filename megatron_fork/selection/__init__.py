"""Which tokens carry gradient: the exact k-th largest over all ranks, and every named rule that uses it."""

from typing import TYPE_CHECKING

from megatron_fork import opened

if TYPE_CHECKING:
    from megatron_fork.selection.choices import SCOPES, TokenChoice, token_choice
    from megatron_fork.selection.config import PRESETS, SelectionConfig
    from megatron_fork.selection.kth import kth_largest
    from megatron_fork.selection.scores import TokenColumns
    from megatron_fork.selection.select import Selection, select_tokens
    from megatron_fork.selection.weights.chosen_tokens import ChosenTokens, Weighed
    from megatron_fork.selection.weights.table import WEIGHTINGS, Weighting, weighting_named
else:
    __getattr__ = opened(__name__, __file__, former={"Config": "SelectionConfig"})

__all__ = [
    "PRESETS",
    "SCOPES",
    "WEIGHTINGS",
    "ChosenTokens",
    "SelectionConfig",
    "Selection",
    "TokenChoice",
    "TokenColumns",
    "Weighed",
    "Weighting",
    "kth_largest",
    "select_tokens",
    "token_choice",
    "weighting_named",
]
