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
    """`math`, `math_verify`, `reach`, `arithmetic`, `reasoning_gym`, `code`, or a function of yours as `module:function`."""
    unevaluated: Policy = "accept"
    r"""Whether `math` takes an expression that is still to be computed, `17 \times 23`, where the answer is a number."""
    named_numbers: Policy = "refuse"
    """Whether `math` takes `x = 5` where the answer is the number 5."""
    workers: NonNegativeInt = 1
    """Processes. 0 scores in the calling process, without time or memory limit, which suits only verifiers that are bounded
    by construction ("reach")."""
    timeout_seconds: Seconds = 5.0
    """Per response, of CPU time. On the clock three times as much where the verifier sleeps, 20 where the machine is busy."""
    memory_gib: Gibibytes = 2.0
    """Address space of each worker."""
    backlog: PositiveInt = 4096
    """Responses that may wait for a worker before `submit` makes the caller wait."""
    failure_warning: Fraction = 0.05
    """Share of a step's responses on which the verifier may fail, by an error, its time-out or its death, without a warning."""
    allow_code: bool = False
    """`kind: code` runs programs that the model wrote, in confined workers; it must be allowed by this."""
    confined: bool = True
    """Workers have no network, change no file and start no process; false only for a `module:function` that must."""

    def check(self) -> None:
        if not is_kind(self.kind):
            raise ConfigError(f"rewards.kind is {self.kind!r}, which is no verifier", hint=KNOWN_KINDS)
        if self.kind in RUNS_PROGRAMS and not (self.allow_code and self.confined and self.workers):
            raise ConfigError(
                f"rewards.kind={self.kind} runs what the model wrote, with rewards.allow_code={self.allow_code}, "
                f"confined={self.confined}, workers={self.workers}",
                hint="set rewards.allow_code=true, in confined workers; read the project's docs/rewards.md first",
            )

    @property
    def verifier(self) -> str:
        """The kind, with what of its rules is not the default, as workers and `score` understand it."""
        rules = Rules(unevaluated=self.unevaluated, named_numbers=self.named_numbers)
        return kind_with(rules) if self.kind == MATHEMATICS else self.kind
