"""Two selections of the same mini-batch, by the learner that trains, and the gradients of their updates without an update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from megatron_fork.distributed import collectives
from megatron_fork.errors import TraceError
from megatron_fork.experience import Batch, Prompt, Trajectory
from megatron_fork.models import ModelConfig
from megatron_fork.objective import group_advantages
from megatron_fork.policy import Learner, TrainedModels
from megatron_fork.run.offline import ModelContext
from megatron_fork.run.scoring import PolicyScorer, check_readable, check_vocabulary, is_first
from megatron_fork.run.setup import build_policy
from megatron_fork.selection import Selection, SelectionConfig
from megatron_fork.traces import TraceFiles

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class TwoSelections:
    """On the first rank: both masks, bool `[response tokens]`, and the texts of each response's tokens."""

    masks: tuple[Array, Array]
    texts: list[list[str]]
    norms: tuple[float, float] | None
    cosine: float | None


def two_selections(
    context: ModelContext,
    files: TraceFiles,
    settings: tuple[SelectionConfig, SelectionConfig],
    *,
    responses: int,
    old: ModelConfig | None,
    gradients: bool,
) -> TwoSelections | None:
    """Select by each of the settings, from the first `responses` of the traces as one mini-batch; None on later ranks.

    Args:
        context: of the model that is trained; `policy` and `objective` of its settings cut micro-batches and make the loss.
        files: the traces.
        settings: of both selections.
        responses: at most so many.
        old: the model before the step's updates, for `entropy_policy=old` and the old log-probs; None: the same model.
        gradients: also their updates' gradients, at the cost of two backward passes.

    """
    trajectories, texts = _batch(context, files, responses)
    policy = build_policy(context, context.config.optimizer)
    scores = PolicyScorer(context, policy)
    check_vocabulary(files, scores)
    for each in trajectories:  # what no model can read is told before a pass
        check_readable(each.prompt.tokens, each.response, scores, f"response {each.number} of the mini-batch")
    share = policy.share(Batch.of_trajectories(trajectories))
    before = None
    if old is not None:
        scores.load(old)
        before = policy.statistics(share)
    scores.load(context.config.model)
    policy.weights_changed()
    now = policy.statistics(share)
    before = before or now
    objective = replace(context.config.objective, kl_coef=0.0)
    learners = [Learner(TrainedModels(policy), each, objective, mismatch_limit=math.inf) for each in settings]
    shares = [
        share.with_columns(
            old_logprob_t=before.logprob,
            logprob_t=(before if each.entropy_policy == "old" else now).logprob,
            entropy_t=(before if each.entropy_policy == "old" else now).entropy,
        )
        for each in settings
    ]
    chosen = [learner.select(each, 1) for learner, each in zip(learners, shares, strict=True)]
    norms, cosine = _gradients(learners, shares, chosen) if gradients else (None, None)
    mine = {
        sequence.number: masks
        for sequence, *masks in zip(
            share.sequences, *(each.mask.split(share.response_lengths) for each in chosen), strict=True
        )
    }
    gathered = collectives.gather_objects_to_first(mine, context.layout.data)
    if not is_first():
        return None
    found = {number: masks for part in gathered for number, masks in part.items()}
    both = tuple(torch.cat([found[each.number][place] for each in trajectories]).numpy() for place in (0, 1))
    return TwoSelections((both[0], both[1]), texts, norms, cosine)


def _gradients(
    learners: Sequence[Learner], shares: Sequence[Batch], chosen: Sequence[Selection]
) -> tuple[tuple[float, float], float]:
    """Norms and cosine of both gradients under any layout: the norm of their sum tells the product."""
    policy = learners[0].policy
    first = learners[0].gradient(shares[0], chosen[0], 1)
    kept = [buffer.cpu().clone() for buffer in policy.gradient_buffers]
    second = learners[1].gradient(shares[1], chosen[1], 1)
    for buffer, earlier in zip(policy.gradient_buffers, kept, strict=True):
        buffer += earlier.to(buffer.device)
    total = policy.gradient_norm()
    if not first or not second:
        return (first, second), math.nan
    return (first, second), min(1.0, max(-1.0, (total**2 - first**2 - second**2) / (2 * first * second)))


def _batch(context: ModelContext, files: TraceFiles, most: int) -> tuple[list[Trajectory], list[list[str]]]:
    """The first responses of the traces that were judged, with advantages within each prompt."""
    names = ["prompt_id", "prompt_tokens", "tokens", "token_texts", "logprob", "reward", "advantage", "finish_reason"]
    rows: list[dict[str, Any]] = []
    for part in files.parts(names):
        rows += [row for row in part.table.to_pylist() if row["reward"] is not None and row["tokens"]][
            : most - len(rows)
        ]
        if len(rows) >= most:
            break
    if not rows:
        raise TraceError(
            f"{files.files[0]} has no response with a reward", hint="give traces of a run or an evaluation"
        )
    if any(row["advantage"] is None for row in rows):
        ids = {name: number for number, name in enumerate(dict.fromkeys(row["prompt_id"] for row in rows))}
        rewards = torch.tensor([row["reward"] for row in rows])
        groups = torch.tensor([ids[row["prompt_id"]] for row in rows])
        advantages = group_advantages(rewards, groups, context.config.objective).tolist()
    else:
        advantages = [row["advantage"] for row in rows]
    trajectories = [
        Trajectory(
            number,
            Prompt(number, "", tuple(row["prompt_tokens"]), ""),
            row["tokens"],
            row["logprob"] or [0.0] * len(row["tokens"]),
            row["finish_reason"],
            0,
            reward=row["reward"],
            advantage=advantage,
        )
        for number, (row, advantage) in enumerate(zip(rows, advantages, strict=True))
    ]
    return trajectories, [_texts(row) for row in rows]


def _texts(row: dict[str, Any]) -> list[str]:
    if row["token_texts"] is None:
        return [f"<{token}>" for token in row["tokens"]]
    return [text.decode("utf-8", "surrogateescape") for text in row["token_texts"]]
