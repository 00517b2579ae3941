"""Work beside the products that happens as late as a second stream of a GPU may do it, or as early."""

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class LateLane:
    """Nothing runs until a result is asked for, and then all that was started before it, in order.

    What a product overwrites too early, or reads too early, is then wrong: a GPU gets it wrong now and then.
    """

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []

    def start(self, work: Callable[[], Result]) -> Callable[[], Result]:
        results: list[Result] = []
        self._waiting.append(lambda: results.append(work()))

        def waited() -> Result:
            while not results:
                self._waiting.pop(0)()
            return results[0]

        return waited
