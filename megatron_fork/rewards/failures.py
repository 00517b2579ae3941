"""Responses on which a verifier failed: they score 0 like wrong ones, so a run must say how many there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from megatron_fork.rewards.score import Failure, RewardError


@dataclass
class Failures:
    """How many of `responses` were not judged, by the way the verifier failed; `example` is the reason of the first."""

    responses: int = 0
    error: int = 0
    timed_out: int = 0
    died: int = 0
    example: str = ""

    def add(self, outcomes: Iterable[tuple[Failure | None, str]]) -> None:
        """Count the (failure, reason) of more responses; a failure of None: the response was judged."""
        for failure, reason in outcomes:
            self.responses += 1
            self.error += failure == "error"
            self.timed_out += failure == "timed_out"
            self.died += failure == "died"
            if failure is not None:
                self.example = self.example or reason

    @property
    def failed(self) -> int:
        return self.error + self.timed_out + self.died

    @property
    def share(self) -> float:
        return self.failed / max(1, self.responses)

    def metrics(self) -> dict[str, float]:
        """The fraction of responses that were not judged, and their number by the way the verifier failed."""
        counts = {"error": self.error, "timed_out": self.timed_out, "died": self.died}
        return {"rewards/failed": self.share, **{f"rewards/{name}": count for name, count in counts.items()}}


class FailureWatch:
    """Ends a run whose verifier has never judged a response, and warns if later too many responses are not judged."""

    def __init__(self, kind: str, limit: float) -> None:
        self.kind = kind
        self.limit = limit
        self._has_judged = False

    def look(self, failures: Failures, where: str) -> str | None:
        """A warning, or None; raises RewardError if all responses failed and none was ever judged.

        All ranks see the same counts, and so decide the same.
        """
        if not failures.responses:
            return None
        self._has_judged |= failures.failed < failures.responses
        if not self._has_judged:
            raise RewardError(
                f"the verifier failed on all {failures.responses} responses of {where}: {failures.example}",
                hint=f"try it on one response: megatron_fork.rewards.score(response, answer, kind={self.kind!r})",
            )
        if failures.share <= self.limit:
            return None
        kinds = (("raised", failures.error), ("timed out", failures.timed_out), ("died", failures.died))
        counted = ", ".join(f"{count:,} {name}" for name, count in kinds if count)
        return (
            f"warning: {where}: the verifier failed on {failures.failed:,} of {failures.responses:,} responses "
            f"({counted}), which count as wrong; the first: {failures.example}"
        )
