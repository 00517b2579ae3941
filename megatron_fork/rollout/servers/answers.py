"""Checks of a server's answer to one request. Each chunk is checked when it arrives; what the request rules out is a fault.

A fault here voids everything that the server drew for the response: tokens before an impossible one cannot be trusted either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from megatron_fork.experience import FinishReason, KeptTokens
from megatron_fork.rollout.pending import PendingRequest, StreamChunk
from megatron_fork.rollout.servers.pace import Allowance, Pace
from megatron_fork.rollout.servers.routed import ExpertsShape, experts_of
from megatron_fork.rollout.servers.wire import quoted, void

# Rounding may lift a log-prob above 0 by this much.
_ROUNDING = 1e-3
# In float32 a probability below exp(-104) is 0 and never drawn. vLLM writes -9999 if it has no log-prob.
LEAST_LOGPROB = -1000.0
_MASKS_NEED = "is it a version that reports them, and started for it (docs/engines.md)?"


class Answer:
    """The chunks of an answer, in their order."""

    def __init__(
        self,
        pending: PendingRequest,
        stop_tokens: Sequence[int],
        vocabulary: int,
        pace: Pace,
        experts: ExpertsShape | None = None,
    ) -> None:
        """`experts`: what the answer must end with a report of; None if it need not."""
        self.room = pending.remaining
        self.reports_kept = pending.request.reports_kept
        self.experts = experts
        self._read = len(pending.prompt)
        self.stop_tokens = frozenset(stop_tokens)
        self.vocabulary = vocabulary
        self.allowance = Allowance(
            pace,
            pending.load,
            kept=pending.request.top_k if self.reports_kept else 0,
            experts=experts.numbers if experts is not None else 0,
        )
        self.count = 0
        self._last: int | None = None
        self._has_ended = False

    def take(
        self,
        tokens: object,
        logprob: object,
        reason: object,
        versions: object,
        kept: object = None,
        experts: Callable[[], Tensor] | None = None,
    ) -> StreamChunk:
        """The next chunk, from JSON fields that may hold anything; raises `ServerFault` if they cannot be right.

        `reason` says why the response ended: stop, length or abort; None if it goes on. `kept` is a list of ids for each token,
        `experts` reads the report of the routing, None if the chunk has none.
        """
        ids = self._tokens(tokens)
        sets = self._sets(kept, ids)
        values = checked_logprobs(logprob, len(ids))
        if self._has_ended and (ids or reason is not None):
            raise void("it sent more after the end of the response")
        if self.count + len(ids) > self.room:
            raise void(f"it sent {self.count + len(ids)} tokens or more, but {self.room} were asked for")
        # Includes the last token of the earlier chunk, if this chunk continues it.
        for token in ([self._last] if self._last is not None and ids else []) + ids[:-1]:
            if token in self.stop_tokens:
                raise void(f"it sent more after token {token}, which ends a response")
        self.count += len(ids)
        self._last = ids[-1] if ids else self._last
        self.allowance.renew(len(ids))
        finish = self._finish(reason)
        chosen = None
        if self.experts is not None and finish is not None:
            chosen = experts_of(experts, self.experts, self._read + self.count - 1)
        return StreamChunk(ids, values, finish, _spans(versions), sets, chosen)

    def _sets(self, kept: object, ids: list[int]) -> KeptTokens | None:
        if not self.reports_kept:
            return None
        if not isinstance(kept, list) or len(kept) != len(ids):
            sent = len(kept) if isinstance(kept, list) else quoted(kept, 60)
            raise void(f"it sent {sent} sampling masks for {len(ids)} tokens; {_MASKS_NEED}")
        sets = KeptTokens()
        for token, mask in zip(ids, kept, strict=True):
            if not isinstance(mask, list) or any(
                type(each) is not int or not 0 <= each < self.vocabulary for each in mask
            ):
                raise void(f"it sent the sampling mask {quoted(mask, 60)}, which is no list of its vocabulary's tokens")
            if len(set(mask)) < len(mask) or token not in mask:
                raise void(
                    f"it drew token {token} from a sampling mask of {len(mask)} that has it not, or others twice"
                )
            sets.append(mask)
        return sets

    def _tokens(self, tokens: object) -> list[int]:
        if not isinstance(tokens, list):
            raise void(f"it sent {quoted(tokens, 60)} instead of tokens")
        for token in tokens:
            if type(token) is not int or not 0 <= token < self.vocabulary:
                raise void(f"it sent the token {quoted(token, 60)}, which is not in a vocabulary of {self.vocabulary}")
        return tokens

    def _finish(self, reason: object) -> FinishReason | None:
        if reason is None or reason == "abort":
            return None
        self._has_ended = True
        if reason == "stop":
            if self._last not in self.stop_tokens:
                at = "without a token" if self._last is None else f"at token {self._last}, which is not a stop token"
                raise void(f"it stopped {at}")
            return "stop"
        if reason == "length":
            if self.count < self.room:
                raise void(
                    f"it ended for length after {self.count} of {self.room} tokens: is its longest sequence shorter?"
                )
            return "length"
        raise void(f"it ended for an unknown reason: {quoted(reason, 60)}")


def checked_logprobs(logprob: object, count: int) -> list[float]:
    """Log-probs of so many tokens, of JSON that may hold anything; raises `ServerFault` for what they cannot be."""
    if not isinstance(logprob, list) or len(logprob) != count:
        sent = len(logprob) if isinstance(logprob, list) else quoted(logprob, 60)
        raise void(f"it sent {sent} log-probs for {count} tokens")
    for value in logprob:
        is_number = type(value) is float or (type(value) is int and abs(value) < 1 << 53)
        if not is_number or not math.isfinite(value) or not LEAST_LOGPROB < value <= _ROUNDING:
            raise void(f"it sent the log-prob {quoted(value, 60)}, which no drawn token can have")
    return [float(value) for value in logprob]


def _spans(raw: object) -> list[tuple[str, int, int]] | None:
    """Spans of weight labels, which both engines write alike."""
    if raw is None:
        return None
    spans = []
    for span in raw if isinstance(raw, list) else [raw]:
        found = (span.get("version"), span.get("start"), span.get("end")) if isinstance(span, dict) else ()
        match found:
            case (str(version), int(start), int(end)) if bool not in (type(start), type(end)):
                spans.append((version, start, end))
            case _:
                raise void(f"it sent something that is not a weight version: {quoted(span, 60)}")
    return spans
