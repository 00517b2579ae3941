"""A response while it is drawn, by one server or by several in turn."""

from __future__ import annotations

import queue
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from megatron_fork.experience import FinishReason, KeptTokens, VersionSpan, logprob_array, token_array
from megatron_fork.rollout.engine import Completion, PartialResponse, Request
from megatron_fork.rollout.servers.wire import quoted


@dataclass(frozen=True)
class StreamChunk:
    """Tokens that arrived together; the last chunk of a server's segment says why it ended, and which weights drew it.

    `versions` are the server's weight labels with token positions within its segment.
    """

    tokens: Sequence[int]
    logprob: Sequence[float]
    finish: FinishReason | None = None
    versions: Sequence[tuple[str, int, int]] | None = None
    kept: KeptTokens | None = None
    """What each of the tokens was drawn from, if the request asks for it."""
    experts: Tensor | None = None
    """As in `Completion`, with the last chunk, if the server reports its routing."""


@dataclass
class PendingRequest:
    """A response so far; a server's segment is added once it has ended or broken off."""

    request: Request
    arrived: queue.Queue[Completion]
    """Receives the completion."""
    tokens: array[int] = field(default_factory=token_array)
    logprob: array[float] = field(default_factory=logprob_array)
    versions: list[VersionSpan] = field(default_factory=list)
    kept: KeptTokens | None = None
    experts: Tensor | None = None
    """Of the whole sequence, from the server that drew its end and so read all of it."""
    failures: int = 0
    failed_at: set[object] = field(default_factory=set)
    """Servers that are not asked again while another one is ready."""

    @classmethod
    def of(cls, request: Request, arrived: queue.Queue[Completion]) -> PendingRequest:
        begun = request.begun
        tokens, logprob = token_array(begun.tokens), logprob_array(begun.logprob)
        kept = begun.kept_copy() if request.reports_kept else None
        return cls(request, arrived, tokens, logprob, list(begun.versions), kept)

    @property
    def remaining(self) -> int:
        return self.request.max_tokens - len(self.tokens)

    @property
    def load(self) -> int:
        """Tokens that a server may have to read and write for it."""
        return len(self.request.tokens) + self.request.max_tokens

    @property
    def prompt(self) -> list[int]:
        return [*self.request.tokens, *self.tokens]

    def finish(self, stop_tokens: Collection[int]) -> FinishReason | None:
        """Why the response has ended, whatever a server says; None if it has not."""
        if self.tokens and self.tokens[-1] in stop_tokens:
            return "stop"
        return None if self.remaining > 0 else "length"

    def add(self, segment: DrawnSegment) -> None:
        """Append what one server drew."""
        start = len(self.tokens)
        self.tokens += segment.tokens
        self.logprob += segment.logprob
        self.experts = segment.experts
        if self.kept is not None:
            self.kept.extend(segment.kept)
        for version, first, end in segment.spans():
            if self.versions and self.versions[-1].version == version:
                self.versions[-1] = self.versions[-1]._replace(end=start + end)
            elif end > first:
                self.versions.append(VersionSpan(version, start + first, start + end))

    def settled(self, stop_tokens: Collection[int], *, needs_experts: bool) -> FinishReason | None:
        """`finish`; a response that ended without the report that it needs loses its last token, and so goes on.

        Whoever draws that token again reads all others, and reports the experts of all.
        """
        finish = self.finish(stop_tokens)
        if finish is None or self.experts is not None or not needs_experts:
            return finish
        length = len(self.tokens) - 1
        del self.tokens[length:], self.logprob[length:]
        if self.kept is not None:
            self.kept.cut(length)
        spans = [span._replace(end=min(span.end, length)) for span in self.versions]
        self.versions = [span for span in spans if span.end > span.start]
        return None

    def completion(self, finish: FinishReason) -> Completion:
        return Completion(
            self.request.number,
            self.tokens,
            self.logprob,
            finish,
            versions=tuple(self.versions),
            experts=self.experts,
            kept=self.kept,
        )

    def unfinished(self) -> Request:
        """The request with its tokens so far, to be continued."""
        begun = PartialResponse(self.tokens, self.logprob, tuple(self.versions), self.kept)
        return replace(self.request, begun=begun)


@dataclass
class DrawnSegment:
    """What one server drew for a pending request, and the version of its weights when it began."""

    version: int
    label_versions: dict[str, int]
    """Versions by the labels that this run gave them; any other label is foreign."""
    tokens: array[int] = field(default_factory=token_array)
    logprob: array[float] = field(default_factory=logprob_array)
    kept: KeptTokens = field(default_factory=KeptTokens)
    experts: Tensor | None = None
    labels: Sequence[tuple[str, int, int]] | None = None
    proven: int = 0
    """Tokens that came while the server had that version and no update was running."""

    def add(self, chunk: StreamChunk, *, is_proven: bool = True) -> None:
        self.tokens.extend(chunk.tokens)
        self.logprob.extend(chunk.logprob)
        self.experts = chunk.experts
        if chunk.kept is not None:
            self.kept.extend(chunk.kept)
        self.proven = len(self.tokens) if is_proven else self.proven
        if chunk.versions is not None:
            self.labels = chunk.versions

    def leave_out_unproven(self) -> None:
        """Drop the tokens after an update, if the segment broke off and no label says which weights drew them."""
        if self.labels is None:
            del self.tokens[self.proven :], self.logprob[self.proven :]
            self.kept.cut(self.proven)

    @property
    def label_report(self) -> str:
        return f"it names the weights {quoted(self.labels)} for {len(self.tokens)} tokens"

    @property
    def is_foreign(self) -> bool:
        """Whether a label names weights that this run never sent."""
        return any(end > start and label not in self.label_versions for label, start, end in self.labels or ())

    @property
    def is_sound(self) -> bool:
        """Whether the labels are this run's, never get older, and cover all tokens."""
        if self.labels is None:
            return True
        covered, version = 0, self.version
        for label, start, end in self.labels:
            if start != covered or end < start or (end > start and self.label_versions.get(label, -1) < version):
                return False
            covered = end
            version = self.label_versions[label] if end > start else version
        return covered == len(self.tokens)

    def spans(self) -> list[tuple[int, int, int]]:
        """(version, start, end); without labels, a segment has the version of its server."""
        if self.labels is None:
            return [(self.version, 0, len(self.tokens))]
        return [(self.label_versions[label], start, end) for label, start, end in self.labels if end > start]


def vllm_sampling(pending: PendingRequest, stop_tokens: Sequence[int], *, stream_interval: int) -> dict[str, Any]:
    """Fields of vLLM's `SamplingParams` for the rest of a pending request."""
    request = pending.request
    sampling: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "seed": (request.seed + len(pending.tokens)) % (1 << 62),
        "max_tokens": pending.remaining,
        "logprobs": 0,
        "ignore_eos": True,  # the stop tokens below decide
        "stop_token_ids": list(stop_tokens),
        "stream_interval": stream_interval,
        "detokenize": False,
    }
    if request.entropy_temperature is not None:
        sampling["extra_args"] = {"entropy_temperature": request.entropy_temperature.parameters}
    return sampling
