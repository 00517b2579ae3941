"""Updates that were not applied, since their loss or gradient norm is NaN or infinite: counted, reported, and limited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from megatron_fork.errors import GradientError
from megatron_fork.policy.network import Update


@dataclass
class SkippedUpdates:
    """How many updates in a row each network has skipped; the same on every rank."""

    limit: int = 0
    """How many in a row may be skipped."""
    in_a_row: dict[str, int] = field(default_factory=dict)
    """By network; a checkpoint keeps it, and a network that applied its last update has no entry."""
    say: Callable[[str], None] = lambda line: None

    def note(self, network: str, update: Update, where: str) -> None:
        """Count an update of `network` and print a line if it was not applied."""
        if update.is_applied:
            self.in_a_row.pop(network, None)
            return
        self.in_a_row[network] = self.in_a_row.get(network, 0) + 1
        self.say(
            f"{where}: not applied to the {network}: its loss is {update.loss:.4g}, its gradient norm "
            f"{update.gradient_norm:.4g}; trajectories {in_ranges(update.suspects)} of the step"
        )

    def check(self) -> None:
        """Raise `GradientError` if a network has skipped more updates in a row than the limit; on every rank alike."""
        for network, count in self.in_a_row.items():
            if count > self.limit:
                many = f"{count} updates in a row" if count > 1 else "an update"
                raise GradientError(
                    f"loss or gradients of {many} of the {network} are NaN or infinite, more than "
                    f"train.max_skipped_updates={self.limit}",
                    hint="lower the learning rate; a loss of your own may divide by 0, or take the root of it",
                )


def in_ranges(numbers: Sequence[int], *, most: int = 8) -> str:
    """Sorted numbers in words, runs of them as ranges: `0-3, 7`; at most `most` ranges are named."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    words = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:most]]
    return ", ".join(words) + (f" and {len(runs) - most} more ranges" if len(runs) > most else "")
