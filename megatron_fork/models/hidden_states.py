"""The last layer's hidden states as every head wants them."""

from __future__ import annotations

from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor


def gathered_hidden_states(model: GPTModel, hidden_states: Tensor) -> Tensor:
    """`[tokens, d]` on every tensor rank, from Megatron's `[tokens (/tp), 1, d]`.

    A head must give every rank the same, whole gradient: under sequence parallelism backward only takes this rank's tokens.
    """
    if model.config.sequence_parallel:
        hidden_states = gather_from_sequence_parallel_region(
            hidden_states, tensor_parallel_output_grad=False, group=model.pg_collection.tp
        )
    return hidden_states.squeeze(1)
