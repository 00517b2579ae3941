"""The large parts of a partial step and of the groups in flight, as files beside a checkpoint's tensors.

Rollouts are the most expensive part of a step, and updates cannot be undone: both are kept. Each rank writes the sequences
that it trains on with their columns; a resumed run, under any layout, reads all of them and takes its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_fork.distributed import Layout
from megatron_fork.errors import CheckpointError
from megatron_fork.experience import Batch, KeptTokens, Prompt, Trajectory, VersionSpan, logprob_array, token_array
from megatron_fork.rollout import PartialResponse, PromptGroup
from megatron_fork.run.state import DAMAGED, MOST, PartialRecord, PartialStep

_Columns = Mapping[str, Tensor]
_GROUPS = "groups.pt"
_OF_EVERY_BATCH = {"advantage_t", "rollout_logprob_t"}


def write_step(folder: Path, step: PartialStep, layout: Layout) -> None:
    """Write this rank's share of every mini-batch; before there are shares the first rank writes all trajectories."""
    if step.result.shares:
        is_first = layout.tensor.rank() == layout.context.rank() == layout.pipeline.rank() == 0
        mine = [part for share in step.result.shares for part in _parts(share)] if is_first else []
    elif layout.world.rank() == 0:
        columns = step.result.columns
        mine = [_plain(each, columns.get(each.number, {})) for each in step.trajectories or []]
    else:
        mine = []
    if mine:
        torch.save(mine, folder / f"part-{layout.world.rank():05d}.pt")


def read_step(folder: Path, record: PartialRecord, step: PartialStep) -> None:
    """Fill in what `write_step` wrote; raises `CheckpointError` if the parts are not those of the step."""
    if record["trajectories"] is None:
        return
    parts: list[tuple[Trajectory, _Columns]] = []
    for file in sorted(folder.glob("part-*.pt")):
        with _reading(file):
            parts += [(_trajectory(part["trajectory"]), part["columns"]) for part in _entries(file)]
            for trajectory, columns in parts:
                _check_columns(trajectory, columns, trained=record["metrics"] is not None)
    parts.sort(key=lambda part: part[0].number)
    numbers = [trajectory.number for trajectory, _ in parts]
    if len(set(numbers)) < len(numbers) or len(numbers) != record["trajectories"]:
        raise CheckpointError(
            f"{folder} holds {len(set(numbers))} trajectories in {len(numbers)} parts, not the {record['trajectories']} of "
            "the partial step",
            hint=DAMAGED,
        )
    step.trajectories = [trajectory for trajectory, _ in parts]
    if record["metrics"] is not None:
        step.result.columns = {trajectory.number: columns for trajectory, columns in parts}


def write_groups(folder: Path, groups: Sequence[PromptGroup]) -> None:
    """Write the prompt groups in flight; only a rank that has any writes."""
    if groups:
        torch.save([_plain_group(group) for group in groups], folder / _GROUPS)


def read_groups(folder: Path) -> list[PromptGroup]:
    """The groups that `write_groups` wrote; empty if it wrote none."""
    path = folder / _GROUPS
    if not path.is_file():
        return []
    with _reading(path):
        return [_group(plain) for plain in _entries(path)]


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn every error of reading a damaged file into a `CheckpointError`."""
    try:
        yield
    except Exception as error:  # torch's reader and the classes below may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{file} is not part of a partial step: {reason}", hint=DAMAGED) from error


def _entries(file: Path) -> list[dict[str, Any]]:
    entries = torch.load(file, weights_only=True)
    if not isinstance(entries, list):
        raise TypeError(f"it holds a {type(entries).__name__}, not a list")
    return entries


def _check_columns(trajectory: Trajectory, columns: _Columns, *, trained: bool) -> None:
    """Columns must be those of a batch, with one value per token; before training there are none."""
    known = {column.name for column in fields(Batch)} - {"sequences"}
    needed = _OF_EVERY_BATCH if trained else set()
    if not needed <= set(columns) <= known:
        raise ValueError(f"trajectory {trajectory.number} has the columns {sorted(columns)}")
    for name, column in columns.items():
        if not isinstance(column, Tensor) or column.shape != (len(trajectory.response),):
            raise ValueError(f"{name} of trajectory {trajectory.number} does not have one value per token")


def _plain_group(group: PromptGroup) -> dict[str, Any]:
    return {
        "draw": group.draw,
        "prompt": asdict(group.prompt),
        "version": group.version,
        "round": group.round,
        "answers": {sample: _plain(answer, {})["trajectory"] for sample, answer in group.answers.items()},
        "begun": {
            sample: (
                *_tensors(begun.tokens, begun.logprob),
                [tuple(span) for span in begun.versions],
                _plain_kept(begun.kept),
            )
            for sample, begun in group.begun.items()
        },
    }


def _group(plain: dict[str, Any]) -> PromptGroup:
    _check_counts(draw=plain["draw"], version=plain["version"], round=plain["round"])
    for sample in (*plain["answers"], *plain["begun"]):
        _check_counts(sample=sample)
    return PromptGroup(
        plain["draw"],
        _prompt(plain["prompt"]),
        plain["version"],
        plain["round"],
        {sample: _trajectory(answer) for sample, answer in plain["answers"].items()},
        {
            sample: PartialResponse(*_arrays(tokens, logprob), _versions(versions), *map(_kept, kept))
            for sample, (tokens, logprob, versions, *kept) in plain["begun"].items()
        },
    )


def _parts(share: Batch) -> list[dict[str, Any]]:
    names = [column.name for column in fields(share) if column.name != "sequences"]
    present = {name: vars(share)[name] for name in names if vars(share)[name] is not None}
    lengths = share.response_lengths
    columns = {name: column_t.split(lengths) for name, column_t in present.items()}
    return [
        _plain(sequence, {name: columns[name][index].clone() for name in columns})
        for index, sequence in enumerate(share.sequences)
        if isinstance(sequence, Trajectory)
    ]


def _plain(trajectory: Trajectory, columns: _Columns) -> dict[str, Any]:
    """The trajectory without classes of this project, so that the file holds only data."""
    plain = asdict(trajectory)
    plain["versions"] = [tuple(span) for span in trajectory.versions]
    plain["kept"] = _plain_kept(trajectory.kept)
    plain["response"], plain["rollout_logprob"] = _tensors(trajectory.response, trajectory.rollout_logprob)
    return {"trajectory": plain, "columns": columns}


def _trajectory(plain: dict[str, Any]) -> Trajectory:
    response, logprob = _arrays(plain["response"], plain["rollout_logprob"])
    drawn = {"response": response, "rollout_logprob": logprob, "versions": _versions(plain["versions"])}
    kept = _kept(plain.get("kept"))  # earlier versions have none
    trajectory = Trajectory(**{**plain, **drawn, "kept": kept, "prompt": _prompt(plain["prompt"])})
    if kept is not None and len(kept) != len(response):
        raise ValueError(f"{len(response)} tokens with what {len(kept)} were drawn from")
    _check_counts(number=trajectory.number, weight_version=trajectory.weight_version)
    _check_texts(text=trajectory.text, reason=trajectory.reason, finish_reason=trajectory.finish_reason)
    if not (math.isfinite(trajectory.reward) and math.isfinite(trajectory.advantage)):
        raise ValueError(f"reward={trajectory.reward}, advantage={trajectory.advantage}: not finite")
    return trajectory


def _prompt(plain: dict[str, Any]) -> Prompt:
    prompt = Prompt(**plain)
    _check_counts(index=prompt.index)
    _check_texts(text=prompt.text, answer=prompt.answer)
    if not prompt.tokens or any(type(token) is not int or token < 0 for token in prompt.tokens):
        raise ValueError(f"prompt {prompt.index} has tokens that are not token ids")
    return prompt


def _check_counts(**counts: object) -> None:
    for name, value in counts.items():
        if type(value) is not int or not 0 <= value <= MOST:
            raise ValueError(f"{name}={value!r} is not a count")


def _check_texts(**texts: object) -> None:
    for name, value in texts.items():
        if not isinstance(value, str):
            raise ValueError(f"{name}={value!r} is not text")


def _versions(plain: Sequence[Any]) -> tuple[VersionSpan, ...]:
    versions = tuple(VersionSpan(*span) for span in plain)
    if any(type(number) is not int for span in versions for number in span):
        raise ValueError("a version span holds values that are not whole numbers")
    if any(span.version < 0 or not 0 <= span.start <= span.end <= MOST for span in versions):
        raise ValueError("a version span is out of range")
    return versions


def _plain_kept(kept: KeptTokens | None) -> tuple[Tensor, Tensor] | None:
    return None if kept is None else (_int32(kept.ids), _int32(kept.counts))


def _kept(plain: Sequence[Tensor] | None) -> KeptTokens | None:
    if plain is None:
        return None
    ids, counts = (token_array(each.tolist()) for each in plain)
    if min(counts, default=0) < 0 or sum(counts) != len(ids) or min(ids, default=0) < 0:
        raise ValueError(f"{len(ids)} tokens in sets of {sum(counts)}")
    return KeptTokens(ids, counts)


def _int32(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(np.asarray(numbers, dtype=np.int32))


def _tensors(tokens: Sequence[int], logprob: Sequence[float]) -> tuple[Tensor, Tensor]:
    return _int32(tokens), torch.tensor(np.asarray(logprob, dtype=np.float32))


def _arrays(tokens: Tensor | Sequence[int], logprob: Tensor | Sequence[float]) -> tuple[Sequence[int], Sequence[float]]:
    """The arrays of tensors, or of tuples, which earlier versions of these files have."""
    token_t, logprob_t = torch.as_tensor(tokens), torch.as_tensor(logprob)
    if token_t.dim() != 1 or token_t.shape != logprob_t.shape:
        raise ValueError(f"tokens of shape {list(token_t.shape)} with log-probs of shape {list(logprob_t.shape)}")
    return token_array(token_t.tolist()), logprob_array(logprob_t.tolist())
