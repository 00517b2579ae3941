"""Who failed first, as the ranks tell each other through their store, and what each of them then ends with."""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass

import torch.distributed as dist

from megatron_fork.errors import MegatronForkError, RankLostError, masked

# What a scheduler takes for: start it again.
_LOST_EXIT_CODE = 75


@dataclass(frozen=True)
class Verdict:
    """Who failed first."""

    rank: int
    host: str
    reason: str
    hint: str
    exit_code: int
    is_lost: bool
    """Whether the rank gives no sign of life; otherwise it has said itself why it failed."""

    @classmethod
    def of_lost(cls, rank: int, host: str, reason: str) -> Verdict:
        hint = "start the run again: it continues from its last checkpoint"
        return cls(rank, host, reason, hint, _LOST_EXIT_CODE, is_lost=True)

    @classmethod
    def of_failed(cls, rank: int, error: BaseException) -> Verdict:
        """This process's own, which fails by `error`."""
        line, hint, code = first_line(error), "see its own output", 1
        if isinstance(error, MegatronForkError):
            line, hint, code = error.message, error.hint, error.exit_code
        return cls(rank, socket.gethostname(), masked(line), masked(hint), code, is_lost=False)

    @classmethod
    def from_json(cls, text: bytes) -> Verdict:
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def error(self, of: int) -> RankLostError:
        """What rank `of` ends with; the first that is left speaks for all."""
        where = f"rank {self.rank}" + (f" on {self.host}" if self.host else "")
        line = f"{where} is lost: {self.reason}" if self.is_lost else f"{where} failed first: {self.reason}"
        speaks = of == (1 if self.rank == 0 else 0) and (self.is_lost or self.rank != 0)
        return RankLostError(line, hint=self.hint, exit_code=self.exit_code, speaks=speaks)


def is_of_others(error: BaseException) -> bool:
    """Whether a collective or the store failed, which the loss of another rank makes them do."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        if isinstance(each, dist.DistError):
            return True
        if type(each) is RuntimeError and any(
            word in str(each) for word in ("gloo", "NCCL", "Connection closed by peer")
        ):
            return True
        each = each.__cause__ or each.__context__
    return False


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
