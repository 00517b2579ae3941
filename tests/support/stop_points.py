"""Stop points, as a run gives them to whoever works for long."""

from collections.abc import Callable

from megatron_fork.errors import StopRequested


def stops_where(asked: Callable[[], bool]) -> Callable[[], None]:
    """A stop point that asks, and raises where the answer is yes."""

    def stop_point() -> None:
        if asked():
            raise StopRequested

    return stop_point
