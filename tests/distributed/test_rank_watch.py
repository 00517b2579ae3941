"""Whatever happens to a rank, the others end soon, with an exit code that is not 0, and name the first that failed.

A rank that fails alone says so itself, whatever becomes of the first rank; what all ranks meet is said once.
"""

import errno
import os
import signal
import time
from pathlib import Path

import pytest
from support.watched_ranks import Ranks

from megatron_fork.errors import ConfigError, ModelError

TIMEOUT = 2.0
FAR = 40.0


def waiting(rank: int, fate: str, of: int) -> None:
    """A rank that waits in a collective for one that meets its fate."""
    import torch
    import torch.distributed as dist

    from megatron_fork import distributed
    from megatron_fork.cli import guard
    from megatron_fork.run import end_with, users_errors

    guard._FIRST_RANK_SECONDS = TIMEOUT  # that a rank with a user's error waits for the first one's word

    def work() -> None:
        distributed.initialize()
        with distributed.watching_ranks(TIMEOUT, end_with), users_errors():
            dist.barrier()
            print("ready", flush=True)
            if fate.startswith("alike"):
                time.sleep(0.4 * abs(rank - of))
            if rank == of or fate == "alike" or (fate == "alike of two" and rank > 0):
                print("meets it", flush=True)
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
        case "alike" | "alike of two":
            raise ModelError("model.path=/here is not a folder")
        case "error":
            raise ConfigError("model.path=/here is not a folder", hint="where the others have one")
        case "defect":
            raise ZeroDivisionError("division by zero")
        case "full disk":
            raise OSError(errno.ENOSPC, "No space left on device", "/scratch/of/this/node")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "slow rank":
            time.sleep(3 * TIMEOUT)


@pytest.mark.parametrize("of", [0, 2])
@pytest.mark.parametrize(
    ("fate", "code", "says"),
    [
        ("kill", 75, "is lost: "),
        ("stop", 75, "is lost: "),
        ("error", 2, "failed first: model.path=/here is not a folder"),
        ("full disk", 1, "failed first: /scratch/of/this/node cannot be used: No space left on device"),
        ("defect", 1, "failed first: ZeroDivisionError: division by zero"),
    ],
)
def test_the_others_end_and_name_it(tmp_path: Path, fate: str, of: int, code: int, says: str) -> None:
    ranks = Ranks(tmp_path, 3, waiting, fate, of)
    ranks.wait_for("ready")
    began = time.monotonic()
    ended = ranks.ended(FAR)
    print(f"{fate} of rank {of}: {time.monotonic() - began:.1f} s")
    own = {"kill": -signal.SIGKILL, "stop": -signal.SIGKILL, "error": 2, "full disk": 1, "defect": 1}[fate]
    assert [each for each, _ in ended] == [own if rank == of else code for rank in range(3)], ended
    output = "".join(text for rank, (_, text) in enumerate(ended) if rank != of)
    if code == 75 or of != 0:  # the first rank says itself why it failed
        assert output.count("error: ") == 1 and f"error: rank {of} on " in output and says in output, output
    assert "Traceback" not in output, output
    assert fate != "error" or of == 0 or "where the others have one" in output
    if fate in ("error", "full disk"):  # of itself, in its own output, wherever that goes
        said = [line for line in ended[of][1].splitlines() if line.startswith("error: ")]
        assert len(said) == 1 and says.removeprefix("failed first: ") in said[0], ended[of]
        assert of == 0 or said[0].startswith(f"error: rank {of} on "), said


@pytest.mark.parametrize(("of", "seconds"), [(1, 0.0), (2, 0.0), (1, 0.7), (2, 2.0)])
def test_a_rank_says_why_it_failed_though_the_first_is_killed(tmp_path: Path, of: int, seconds: float) -> None:
    """As srun kills it once a rank has ended, or a user: before the first rank knows, and while the other waits for it."""
    ranks = Ranks(tmp_path, 3, waiting, "error", of)
    ranks.wait_for("ready")
    ranks.wait_for("meets it", of=of)
    time.sleep(seconds)
    ranks.processes[0].kill()
    code, output = ranks.ended(FAR)[of]
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1, (code, output)
    assert lines[0].startswith(f"error: rank {of} on ") and "model.path=/here is not a folder" in lines[0], lines
    assert "where the others have one" in output and "Traceback" not in output, output


@pytest.mark.parametrize(
    ("of", "together"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (1, signal.SIGKILL), (2, signal.SIGKILL), (2, None)]
)
def test_what_all_ranks_meet_is_said_once(tmp_path: Path, of: int, together: signal.Signals | None) -> None:
    """By the first, whichever rank meets it before the others, and though a launcher ends all with the first that leaves."""
    ended = Ranks(tmp_path, 3, waiting, "alike", of).ended(FAR, together=together)
    assert ended[0][0] == 1 and (together or [code for code, _ in ended] == [1, 1, 1]), ended
    output = "".join(text for _, text in ended)
    assert output.count("error: ") == 1 and "error: model.path=/here is not a folder" in ended[0][1], output
    assert "Traceback" not in output, output


@pytest.mark.parametrize(
    ("fate", "together"),
    [("error", signal.SIGTERM), ("full disk", signal.SIGKILL), ("alike of two", signal.SIGKILL)],
)
def test_what_a_rank_meets_alone_is_said_though_a_launcher_ends_all_with_it(
    tmp_path: Path, fate: str, together: signal.Signals
) -> None:
    ended = Ranks(tmp_path, 3, waiting, fate, 2).ended(FAR, together=together)
    lines = [line for _, output in ended for line in output.splitlines() if line.startswith("error: ")]
    assert 1 <= len(lines) <= 2 and all(line.startswith("error: rank 2 on ") for line in lines), ended
    assert ended[2][0] in (1, 2) and "Traceback" not in str(ended), ended


def test_a_rank_that_is_slow_is_not_lost(tmp_path: Path) -> None:
    ended = Ranks(tmp_path, 3, waiting, "slow rank", 1).ended(FAR)
    assert [code for code, _ in ended] == [0, 0, 0], ended
    assert all("through" in output and "error" not in output for _, output in ended)
