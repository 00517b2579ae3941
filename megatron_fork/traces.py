"""A few trajectories of a step with every token's entropy and whether it carried gradient, for the report."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from torch.distributed import ProcessGroup
from transformers import PreTrainedTokenizerBase

from megatron_fork.distributed import collectives
from megatron_fork.experience import Batch, Trajectory


def trace_records(
    shares: Sequence[Batch], tokenizer: PreTrainedTokenizerBase, *, step: int, count: int, group: ProcessGroup
) -> list[dict[str, Any]]:
    """`count` trajectories of the step's shares over all data-parallel ranks, chosen by the step, in batch order."""
    mine = [record for share in shares for record in _records(share, tokenizer, step)]
    everyone = [record for records in collectives.gather_objects(mine, group) for record in records]
    everyone.sort(key=lambda record: record["number"])
    chosen = random.Random(step).sample(everyone, min(count, len(everyone)))
    return sorted(chosen, key=lambda record: record["number"])


def _records(share: Batch, tokenizer: PreTrainedTokenizerBase, step: int) -> list[dict[str, Any]]:
    assert share.entropy_t is not None and share.selected_t is not None and share.old_logprob_t is not None
    entropies = share.entropy_t.split(share.response_lengths)
    selections = share.selected_t.split(share.response_lengths)
    logprobs = share.old_logprob_t.split(share.response_lengths)
    return [
        {
            "step": step,
            "number": sequence.number,
            "prompt": sequence.prompt.text,
            "answer": sequence.prompt.answer,
            "tokens": [tokenizer.decode([token]) for token in sequence.response],
            "entropy": entropy.tolist(),
            "selected": selected.tolist(),
            "logprob": logprob.tolist(),
            "reward": sequence.reward,
            "advantage": sequence.advantage,
            "finish_reason": sequence.finish_reason,
        }
        for sequence, entropy, selected, logprob in zip(share.sequences, entropies, selections, logprobs, strict=True)
        if isinstance(sequence, Trajectory)
    ]
