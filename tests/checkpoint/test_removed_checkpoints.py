"""What somebody removes while a run goes on is said aloud and written anew; LATEST never names what is not there."""

import shutil
from pathlib import Path

import pytest
from support.ranks import run_on_ranks


def removed_while_running(name: str) -> None:
    from support.layouts import model_config

    from megatron_fork import distributed
    from megatron_fork.checkpoint import Checkpoints, latest
    from megatron_fork.errors import CheckpointError
    from megatron_fork.policy import OptimizerConfig, Policy, PolicyConfig

    run = Path(name, "run")
    run.mkdir()
    root, said = run / "checkpoints", []
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        policy = Policy(PolicyConfig(), OptimizerConfig(), model_config(tied=True, experts=False), layout)
        checkpoints = Checkpoints(root, keep=2, say=said.append)

        def save(step: int) -> None:
            checkpoints.save(step, {"policy": policy}, {"step": step})
            assert checkpoints.holds(step)  # it is on its way
            checkpoints.wait()

        save(1)
        save(2)
        checkpoints.poll()
        assert checkpoints.holds(2) and not checkpoints.holds(1) and said == []

        shutil.rmtree(root / "step-000002")
        checkpoints.poll()
        assert (
            len(said) == 1 and "checkpoint step-000002 was removed" in said[0] and "resume from step-000001" in said[0]
        )
        assert (root / "LATEST").read_text() == "step-000001\n"
        assert not checkpoints.holds(2)
        checkpoints.poll()
        assert len(said) == 1  # once
        save(2)
        assert checkpoints.holds(2) and (root / "LATEST").read_text() == "step-000002\n"

        (root / "LATEST").unlink()
        save(3)  # notices it as well, and keeps only two
        assert "LATEST was removed" in said.pop() and (root / "LATEST").read_text() == "step-000003\n"
        assert sorted(path.name for path in root.glob("step-*")) == ["step-000002", "step-000003"]

        shutil.rmtree(root)
        checkpoints.poll()
        assert "step-000002, step-000003 was removed" in said[-1] and "would start over" in said[-1]
        save(4)
        found = latest(root)
        assert found is not None and found.progress == {"step": 4}

        shutil.rmtree(run)
        with pytest.raises(CheckpointError, match="cannot be written") as caught:
            save(5)
        assert "was removed while the run wrote to it" in caught.value.hint and not run.exists()


@pytest.mark.slow
def test_removed_checkpoints_are_noticed(tmp_path: Path) -> None:
    run_on_ranks(removed_while_running, 1, str(tmp_path), have_children=True)
