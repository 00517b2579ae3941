"""Whatever happens to a rank, the others end soon, with an exit code that is not 0, and name the first that failed."""

import os
import signal
import time
from pathlib import Path

import pytest
from support.watched_ranks import Ranks

from megatron_fork.errors import ConfigError

TIMEOUT = 2.0
FAR = 40.0


def waiting(rank: int, fate: str, of: int) -> None:
    """A rank that waits in a collective for one that meets its fate."""
    import torch
    import torch.distributed as dist

    from megatron_fork import distributed
    from megatron_fork.cli import guard
    from megatron_fork.run import end_with

    guard._FIRST_RANK_SECONDS = TIMEOUT  # that a rank with a user's error waits for the first one's word

    def work() -> None:
        distributed.initialize()
        with distributed.watching_ranks(TIMEOUT, end_with):
            dist.barrier()
            print("ready", flush=True)
            if rank == of:
                _meet(fate)
            if fate == "slow rank":
                dist.barrier()
                print("through", flush=True)
                return
            time.sleep(0.2 * rank)
            dist.all_reduce(torch.zeros(1))
        distributed.finalize()

    guard.guarded(work, debug=False)


def _meet(fate: str) -> None:
    match fate:
        case "error":
            raise ConfigError("model.path=/here is not a folder", hint="where the others have one")
        case "defect":
            raise ZeroDivisionError("division by zero")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "slow rank":
            time.sleep(3 * TIMEOUT)


@pytest.mark.parametrize("of", [0, 1])
@pytest.mark.parametrize(
    ("fate", "code", "says"),
    [
        ("kill", 75, "is lost: "),
        ("stop", 75, "is lost: "),
        ("error", 2, "failed first: model.path=/here is not a folder"),
        ("defect", 1, "failed first: ZeroDivisionError: division by zero"),
    ],
)
def test_the_others_end_and_name_it(tmp_path: Path, fate: str, of: int, code: int, says: str) -> None:
    ranks = Ranks(tmp_path, 3, waiting, fate, of)
    ranks.wait_for("ready")
    began = time.monotonic()
    ended = ranks.ended(FAR)
    print(f"{fate} of rank {of}: {time.monotonic() - began:.1f} s")
    own = {"kill": -signal.SIGKILL, "stop": -signal.SIGKILL, "error": 2, "defect": 1}[fate]
    assert [each for each, _ in ended] == [own if rank == of else code for rank in range(3)], ended
    output = "".join(text for rank, (_, text) in enumerate(ended) if rank != of)
    if code == 75 or of != 0:  # the first rank says itself why it failed
        assert output.count("error: ") == 1 and f"error: rank {of} on " in output and says in output, output
    assert "Traceback" not in output, output
    assert fate != "error" or of == 0 or "where the others have one" in output


def test_a_rank_that_is_slow_is_not_lost(tmp_path: Path) -> None:
    ended = Ranks(tmp_path, 3, waiting, "slow rank", 1).ended(FAR)
    assert [code for code, _ in ended] == [0, 0, 0], ended
    assert all("through" in output and "error" not in output for _, output in ended)
