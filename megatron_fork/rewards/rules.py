r"""Rules for judging answers that are a matter of taste, and how they are passed to a worker."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from megatron_fork.rewards.score import RewardError

Policy = Literal["accept", "refuse"]
MATHEMATICS = "math"


@dataclass(frozen=True)
class Rules:
    r"""`unevaluated`: `17 \times 23` for 391; `named_numbers`: `x = 5` for 5."""

    unevaluated: Policy = "accept"
    named_numbers: Policy = "refuse"


def kind_with(rules: Rules) -> str:
    """The kind `math` with these rules: `math`, or `math?unevaluated=refuse`."""
    default = Rules()
    differing = [
        f"{field.name}={getattr(rules, field.name)}"
        for field in fields(Rules)
        if getattr(rules, field.name) != getattr(default, field.name)
    ]
    return MATHEMATICS + ("?" + "&".join(differing) if differing else "")


def rules_of(kind: str) -> Rules | None:
    """The rules in a kind `math?...`; None for another kind. Raises RewardError if a rule is unknown."""
    name, mark, written = kind.partition("?")
    if name != MATHEMATICS or not mark:
        return None
    known = {field.name for field in fields(Rules)}
    chosen: dict[str, Policy] = {}
    for part in written.split("&"):
        field, _, value = part.partition("=")
        if field not in known or value not in ("accept", "refuse"):
            raise RewardError(f"unknown rule {part!r} in {kind!r}", hint=f"rules: {', '.join(sorted(known))}")
        chosen[field] = "accept" if value == "accept" else "refuse"
    return Rules(**chosen)
