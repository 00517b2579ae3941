"""A training step that was stopped between two of its updates, and how a later run takes it up.

Rollouts are what a step costs most, and updates that were made cannot be unmade: both are kept. Each rank writes the sequences
that it taught with their columns, and whoever resumes, under any layout, picks from all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_fork.distributed import Layout
from megatron_fork.experience import Batch, Prompt, Trajectory, VersionSpan, logprob_array, token_array
from megatron_fork.policy import Lesson, Taught
from megatron_fork.rollout import Begun, Group

_Columns = dict[str, Tensor]
_GROUPS = "groups.pt"


@dataclass(frozen=True)
class Unfinished:
    """The rollouts of a step, and what was taught of them so far."""

    trajectories: list[Trajectory]
    """With their advantages, in the order of their numbers."""
    rollout_metrics: dict[str, float]
    prompts_drawn: int
    taught: Taught | None = None
    """None: nothing yet, not even the statistics pass."""

    def record(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        return {
            "rollout_metrics": self.rollout_metrics,
            "prompts_drawn": self.prompts_drawn,
            "metrics": self.taught.metrics if self.taught else None,
            "updates": self.taught.updates if self.taught else [],
        }

    def write(self, folder: Path, lesson: Lesson | None, layout: Layout) -> None:
        """This rank's part: its share of every mini-batch, or, where nothing was taught, all from the first rank."""
        if lesson is None:
            mine = [_plain(each, {}) for each in self.trajectories] if layout.world.rank() == 0 else []
        elif layout.tensor.rank() == layout.context.rank() == layout.pipeline.rank() == 0:
            mine = [part for share in lesson.shares for part in _parts(share)]
        else:
            mine = []
        if mine:
            torch.save(mine, folder / f"part-{layout.world.rank():05d}.pt")


def read(folder: Path, record: dict[str, Any]) -> Unfinished:
    """What `write` and `record` kept."""
    parts = [part for file in sorted(folder.glob("part-*.pt")) for part in torch.load(file, weights_only=True)]
    parts.sort(key=lambda part: part["trajectory"]["number"])
    columns = {part["trajectory"]["number"]: part["columns"] for part in parts}
    taught = Taught(record["metrics"], record["updates"], columns) if record["metrics"] is not None else None
    trajectories = [_trajectory(part["trajectory"]) for part in parts]
    return Unfinished(trajectories, record["rollout_metrics"], record["prompts_drawn"], taught)


def write_groups(folder: Path, groups: Sequence[Group]) -> None:
    """Groups under way, from whichever rank has any."""
    if groups:
        torch.save([_plain_group(group) for group in groups], folder / _GROUPS)


def read_groups(folder: Path) -> list[Group]:
    """What `write_groups` kept; none where it kept nothing."""
    path = folder / _GROUPS
    return [_group(plain) for plain in torch.load(path, weights_only=True)] if path.is_file() else []


def _plain_group(group: Group) -> dict[str, Any]:
    return {
        "draw": group.draw,
        "prompt": asdict(group.prompt),
        "version": group.version,
        "round": group.round,
        "answers": {sample: _plain(answer, {})["trajectory"] for sample, answer in group.answers.items()},
        "begun": {
            sample: (*_tensors(begun.tokens, begun.logprob), [tuple(span) for span in begun.versions])
            for sample, begun in group.begun.items()
        },
    }


def _group(plain: dict[str, Any]) -> Group:
    return Group(
        plain["draw"],
        Prompt(**plain["prompt"]),
        plain["version"],
        plain["round"],
        {sample: _trajectory(answer) for sample, answer in plain["answers"].items()},
        {
            sample: Begun(*_arrays(tokens, logprob), tuple(VersionSpan(*span) for span in versions))
            for sample, (tokens, logprob, versions) in plain["begun"].items()
        },
    )


def _parts(share: Batch) -> list[dict[str, Any]]:
    names = [column.name for column in fields(share) if column.name != "sequences"]
    present = {name: vars(share)[name] for name in names if vars(share)[name] is not None}
    lengths = share.response_lengths
    pieces = {name: column_t.split(lengths) for name, column_t in present.items()}
    return [
        _plain(sequence, {name: pieces[name][index].clone() for name in pieces})
        for index, sequence in enumerate(share.sequences)
        if isinstance(sequence, Trajectory)
    ]


def _plain(trajectory: Trajectory, columns: _Columns) -> dict[str, Any]:
    """Without classes of this project, so that a file is data and nothing else."""
    plain = asdict(trajectory)
    plain["versions"] = [tuple(span) for span in trajectory.versions]
    plain["response"], plain["rollout_logprob"] = _tensors(trajectory.response, trajectory.rollout_logprob)
    return {"trajectory": plain, "columns": columns}


def _trajectory(plain: dict[str, Any]) -> Trajectory:
    versions = tuple(VersionSpan(*span) for span in plain["versions"])
    response, logprob = _arrays(plain["response"], plain["rollout_logprob"])
    drawn = {"response": response, "rollout_logprob": logprob, "versions": versions}
    return Trajectory(**{**plain, **drawn, "prompt": Prompt(**plain["prompt"])})


def _tensors(tokens: Sequence[int], logprob: Sequence[float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(np.asarray(tokens, dtype=np.int32)), torch.tensor(np.asarray(logprob, dtype=np.float32))


def _arrays(tokens: Tensor | Sequence[int], logprob: Tensor | Sequence[float]) -> tuple[Sequence[int], Sequence[float]]:
    """Also of tuples, as these files once had them."""
    return token_array(torch.as_tensor(tokens).tolist()), logprob_array(torch.as_tensor(logprob).tolist())
