from collections.abc import Iterator

import pytest
from support.hostile_programs import NAMESPACES, RUNS_HERE, Trainer


@pytest.fixture(scope="session", params=["as found", "no namespaces"])
def trainer(request: pytest.FixtureRequest) -> Iterator[Trainer]:
    """On this machine as it is, and as in most containers."""
    if not RUNS_HERE:
        pytest.skip("the attacks name system calls by their numbers on x86-64")
    with Trainer(refusing=NAMESPACES if request.param == "no namespaces" else ()) as trainer:
        yield trainer
