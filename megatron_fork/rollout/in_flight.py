"""Groups in flight, and which of them a step may take: as they finish, and none later than the recipe allows.

A group is as old as the weights that it began with. With `max_staleness = k` a step with the weights of version v may train on
groups of version v - k and newer. Two rules make sure that no group gets too old, so that nothing drawn is thrown away:

* at most (k + 1) n groups are in flight when a step of n groups begins, and k n while it trains;
* a younger group goes first only if all older ones still get a place in time (earliest deadline first with n places a step).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from megatron_fork.experience import Prompt, Trajectory
from megatron_fork.rollout.engine import PartialResponse


@dataclass
class PromptGroup:
    """The responses to one prompt, as far as they are drawn."""

    draw: int
    """The prompt's number in the run's order; it seeds the responses."""
    prompt: Prompt
    version: int
    """Version of the weights when it was begun."""
    round: int = 1
    """1, or one more than the round of the group without signal that it replaces."""
    answers: dict[int, Trajectory] = field(default_factory=dict)
    """Scored responses, by the number of the sample."""
    begun: dict[int, PartialResponse] = field(default_factory=dict)
    """Partial responses of samples that were stopped."""

    def copy(self) -> PromptGroup:
        return replace(self, answers=dict(self.answers), begun=dict(self.begun))

    @property
    def has_signal(self) -> bool:
        """Whether the rewards differ: equal ones give no advantage."""
        return has_signal(self.answers.values())


def has_signal(trajectories: Iterable[Trajectory]) -> bool:
    """Whether the rewards of a group differ."""
    return len({trajectory.reward for trajectory in trajectories}) > 1


class InFlightGroups:
    """The groups in flight, in the order of their draws."""

    def __init__(self, groups_per_step: int, max_staleness: int) -> None:
        self.groups_per_step = groups_per_step
        self.max_staleness = max_staleness
        self.groups: dict[int, PromptGroup] = {}

    def room(self, *, training: bool) -> int:
        """How many more groups may be begun, before a step takes its groups or while it trains on them."""
        steps = self.max_staleness + (not training)
        return max(0, steps * self.groups_per_step - len(self.groups))

    def add(self, group: PromptGroup) -> None:
        self.groups[group.draw] = group

    def remove(self, group: PromptGroup) -> None:
        del self.groups[group.draw]

    def take(self, samples: int, version: int, places: int) -> list[PromptGroup]:
        """Take whole groups, oldest first, for a step with the weights of `version` that still needs `places` groups."""
        taken: list[PromptGroup] = []
        for group in sorted(self.groups.values(), key=lambda group: (group.version, group.draw)):
            if len(group.answers) == samples and self._may_be_taken(group, version, places - len(taken)):
                self.remove(group)
                taken.append(group)
        return taken

    def _may_be_taken(self, group: PromptGroup, version: int, places: int) -> bool:
        """Whether all other groups can still be trained on in time if `group` takes a place."""
        if places < 1:
            return False
        for steps in range(self.max_staleness + 1):
            oldest = version + steps - self.max_staleness
            due = sum(other.version <= oldest for other in self.groups.values() if other is not group)
            if due > places - 1 + steps * self.groups_per_step:
                return False
        return True
