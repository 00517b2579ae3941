"""Megatron's GPTModel with one number per token instead of the vocabulary: PPO's critic."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor, nn
from transformers import PretrainedConfig

from megatron_fork.models.routing import Routing
from megatron_fork.models.statistics_model import StatisticsModel, gathered_hidden_states


class ValueHead(nn.Linear):
    """One number per token, in float32 for any dtype of the model."""

    def forward(self, hidden_td: Tensor) -> Tensor:
        return (hidden_td.float() @ self.weight.float().T)[:, 0]


class ValueModel(GPTModel):
    """`forward(tokens, positions, None, labels=targets, loss_mask=rows)` gives float32 values `[rows]`, as a tuple of one."""

    def __init__(self, *args: Any, hf_config: PretrainedConfig, routing: Routing, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hf_config = hf_config
        self.routing = routing
        if self.post_process:
            # The name under which Megatron saves what follows the last layer. It is the same on every tensor rank, and
            # starts at zero, so that the first values are 0.
            self.output_layer = ValueHead(
                self.config.hidden_size, 1, bias=False, dtype=self.config.params_dtype, device=_device_of(self)
            )
            nn.init.zeros_(self.output_layer.weight)

    def forward(self, *args: Any, row_loss: None = None, kept: None = None, **kwargs: Any) -> Any:
        """Megatron's forward; there is no LM head for a `row_loss` or `kept` sets."""
        assert row_loss is None and kept is None
        return super().forward(*args, **kwargs)

    def _postprocess(
        self,
        hidden_states: Tensor,
        *args: Any,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor]:
        """Override of Megatron's last step: a linear map of the rows marked in `loss_mask` `[1, tokens]`, in float32."""
        if not self.post_process:
            return super()._postprocess(hidden_states, *args, labels=labels, loss_mask=loss_mask, **kwargs)
        hidden_td = gathered_hidden_states(self, hidden_states)
        if loss_mask is not None:
            hidden_td = hidden_td[loss_mask[0]]
        return (self.output_layer(hidden_td),)


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


# Any model of this project: its forward takes a packed row and returns results at the marked tokens.
PackedModel = StatisticsModel | ValueModel
