"""How responses are scored."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_fork.errors import ConfigError
from megatron_fork.recipe import Fraction, Gibibytes, NonNegativeInt, PositiveInt, Seconds, Settings
from megatron_fork.rewards.rules import MATHEMATICS, Policy, Rules, kind_with
from megatron_fork.rewards.verifiers import KNOWN_KINDS, RUNS_PROGRAMS, is_kind


@dataclass
class RewardsConfig(Settings, room="rewards"):
    """How responses are scored."""

    kind: str = "math"
    """`math`, `math_verify`, `reach`, `arithmetic`, `reasoning_gym`, `code`, or your own function as `module:function`."""
    unevaluated: Policy = "accept"
    r"""Whether `math` accepts an expression that is not computed, such as `17 \times 23`, if the answer is a number."""
    named_numbers: Policy = "refuse"
    """Whether `math` accepts `x = 5` if the answer is the number 5."""
    workers: NonNegativeInt = 1
    """Worker processes. 0 scores in the calling process without a time or memory limit; use it only for verifiers that always
    end quickly ("reach")."""
    timeout_seconds: Seconds = 5.0
    """CPU time for a response. The wall-clock limit is 3 times as long, and 20 times while the machine is busy."""
    memory_gib: Gibibytes = 2.0
    """Address space of each worker."""
    backlog: PositiveInt = 4096
    """Responses that may wait for a worker before `submit` makes the caller wait."""
    failure_warning: Fraction = 0.05
    """A warning is printed if the verifier fails (by an error, a time-out or its death) on more of a step's responses."""
    allow_code: bool = False
    """Allows `kind: code`, which runs programs that the model wrote, in confined workers."""
    confined: bool = True
    """Workers have no network, change no file and start no process; false only for a `module:function` that needs these."""

    def check(self) -> None:
        if not is_kind(self.kind):
            raise ConfigError(f"rewards.kind is {self.kind!r}, which is not a verifier", hint=KNOWN_KINDS)
        if self.kind in RUNS_PROGRAMS and not (self.allow_code and self.confined and self.workers):
            raise ConfigError(
                f"rewards.kind={self.kind} runs what the model wrote, with rewards.allow_code={self.allow_code}, "
                f"confined={self.confined}, workers={self.workers}",
                hint="set rewards.allow_code=true, in confined workers; read the project's docs/rewards.md first",
            )

    @property
    def verifier(self) -> str:
        """The kind with its rules that differ from the default, as workers and `score` read it."""
        rules = Rules(unevaluated=self.unevaluated, named_numbers=self.named_numbers)
        return kind_with(rules) if self.kind == MATHEMATICS else self.kind
