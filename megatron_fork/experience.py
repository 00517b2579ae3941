"""The data of the loop: prompts, trajectories, and batches of them with their per-token columns."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

FinishReason = Literal["stop", "length"]


def token_array(tokens: Iterable[int] = ()) -> array[int]:
    """Four bytes per token: every rank holds a step's responses, such as 8,192 of 15k tokens; a tuple takes 10 times that."""
    return array("i", tokens)


def logprob_array(logprobs: Iterable[float] = ()) -> array[float]:
    """Float32 nats, as engines compute them."""
    return array("f", logprobs)


class VersionSpan(NamedTuple):
    """Response tokens `[start, end)` were drawn under the weights of `version`."""

    version: int
    start: int
    end: int


@dataclass
class KeptTokens:
    """For each response token the ids that it was drawn from, its kept set; a set of 0 ids stands for the whole vocabulary.

    Top-k, top-p and min-p leave such sets. They are kept as one list of ids with a length a token, four bytes each.
    """

    ids: array[int] = field(default_factory=token_array)
    counts: array[int] = field(default_factory=token_array)

    def __len__(self) -> int:
        return len(self.counts)

    def append(self, ids: Iterable[int]) -> None:
        """The set of the next token."""
        before = len(self.ids)
        self.ids.extend(ids)
        self.counts.append(len(self.ids) - before)

    def extend(self, other: KeptTokens) -> None:
        self.ids.extend(other.ids)
        self.counts.extend(other.counts)

    def cut(self, length: int) -> None:
        """Forget the sets of all tokens from `length` on."""
        gone = sum(self.counts[length:])
        del self.counts[length:], self.ids[len(self.ids) - gone :]

    def copy(self) -> KeptTokens:
        return KeptTokens(self.ids[:], self.counts[:])


@dataclass(frozen=True)
class Prompt:
    """A question, and the answer that a verifier compares responses with."""

    index: int
    text: str
    tokens: tuple[int, ...]
    answer: str


@dataclass(frozen=True)
class Demonstration:
    """A prompt with a response to imitate; `number` is its place in the batch that it was drawn for."""

    number: int
    prompt: Prompt
    response: Sequence[int]

    @property
    def length(self) -> int:
        """Number of tokens that the model reads: the last response token is only a target."""
        return len(self.prompt.tokens) + len(self.response) - 1


@dataclass(frozen=True)
class Trajectory(Demonstration):
    """A response that an engine sampled, with the engine's log-probs and the verifier's judgement."""

    rollout_logprob: Sequence[float]
    finish_reason: FinishReason
    weight_version: int
    """Version of the oldest weights that drew one of its tokens."""
    experts: Tensor | None = None
    """`[length, layers, k]` int16, the experts that the engine sent each token to; None if it does not report them."""
    kept: KeptTokens | None = None
    """What each token was drawn from, if the engine reports it; `rollout_logprob` is then under the softmax over these."""
    versions: tuple[VersionSpan, ...] = ()
    text: str = ""
    reward: float = 0.0
    reason: str = ""
    failure: Literal["error", "timed_out", "died"] | None = None
    """How the verifier failed on it, if it did not judge it; the reward is then 0."""
    advantage: float = 0.0
    """The reward compared with its prompt group's; with a critic, the reward with its overlong penalty."""


# Token ids of one batch are `number * _LONGEST + place`: unique, and the same under every layout.
_LONGEST = 1 << 24


@dataclass(frozen=True)
class Batch:
    """Sequences and columns of one value per response token, in the order of the sequences, `[response tokens]`."""

    sequences: Sequence[Demonstration]
    advantage_t: Tensor | None = None
    rollout_logprob_t: Tensor | None = None
    old_logprob_t: Tensor | None = None  # of the policy before this batch's updates
    logprob_t: Tensor | None = None  # of the policy whose entropy is `entropy_t`
    entropy_t: Tensor | None = None
    kept_entropy_t: Tensor | None = None  # of the softmax over kept sets; `entropy_t` is of the whole vocabulary
    reference_logprob_t: Tensor | None = None
    value_t: Tensor | None = None
    return_t: Tensor | None = None
    selected_t: Tensor | None = None

    @classmethod
    def of_trajectories(cls, trajectories: Sequence[Trajectory]) -> Batch:
        lengths = torch.tensor([len(trajectory.response) for trajectory in trajectories], dtype=torch.long)
        advantages = torch.tensor([trajectory.advantage for trajectory in trajectories], dtype=torch.float32)
        logprobs = [np.asarray(trajectory.rollout_logprob, dtype=np.float32) for trajectory in trajectories]
        return cls(
            trajectories,
            advantage_t=advantages.repeat_interleave(lengths),
            rollout_logprob_t=torch.from_numpy(np.concatenate(logprobs)) if logprobs else torch.zeros(0),
        )

    @property
    def response_lengths(self) -> list[int]:
        return [len(sequence.response) for sequence in self.sequences]

    @property
    def response_tokens(self) -> int:
        return sum(self.response_lengths)

    @property
    def sequence_t(self) -> Tensor:
        """`[response tokens]` int64: which of `sequences` each token belongs to."""
        return torch.arange(len(self.sequences)).repeat_interleave(
            torch.tensor(self.response_lengths, dtype=torch.long)
        )

    @property
    def number_t(self) -> Tensor:
        """`[response tokens]` int64: the number of each token's response, the same under every layout."""
        return torch.tensor([each.number for each in self.sequences], dtype=torch.long)[self.sequence_t]

    @property
    def place_t(self) -> Tensor:
        """`[response tokens]` int64: each token's place in its response, from 0."""
        places = [torch.arange(length) for length in self.response_lengths]
        return torch.cat(places) if places else torch.zeros(0, dtype=torch.long)

    def drawn_by(self, version: int) -> Tensor:
        """`[response tokens]` bool: whether the weights of `version` drew the token; true if the version is not recorded."""
        drawn_t = torch.ones(self.response_tokens, dtype=torch.bool)
        start = 0
        for sequence in self.sequences:
            for span in sequence.versions if isinstance(sequence, Trajectory) else ():
                drawn_t[start + span.start : start + span.end] = span.version == version
            start += len(sequence.response)
        return drawn_t

    @property
    def token_id_t(self) -> Tensor:
        """`[response tokens]` int64: an id that does not depend on the layout."""
        return self.place_t + self.number_t * _LONGEST

    def with_columns(self, **columns: Tensor) -> Batch:
        return replace(self, **columns)  # type: ignore[arg-type]

    def take(self, indices: Sequence[int]) -> Batch:
        """The sequences at `indices`, in that order, with their share of every column."""
        lengths = self.response_lengths
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        places = [torch.arange(starts[index], starts[index + 1]) for index in indices]
        token_t = torch.cat(places) if places else torch.zeros(0, dtype=torch.long)
        columns = {
            column.name: values[token_t]
            for column in fields(self)
            if column.name != "sequences" and (values := getattr(self, column.name)) is not None
        }
        return Batch([self.sequences[index] for index in indices], **columns)
