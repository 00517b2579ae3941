"""A process that resumes, then saves at every step and says when a save is complete; to be killed, by tests and benchmarks.

python -m support.saver FOLDER LAST_STEP [MOMENT]: with a moment it kills itself there, at the first save.
"""

import os
import signal
import sys
from pathlib import Path

from megatron_fork import distributed
from megatron_fork.checkpoint import Checkpoints, folder, load_training_state
from megatron_fork.policy import OptimizerConfig, Policy, PolicyConfig
from support.layouts import model_config


def kill_at(moment: str) -> None:
    """Replace a step of publishing by one that never returns."""

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def die_when(suffix: str, act: object) -> object:
        return lambda path, *rest: die() if str(path).endswith(suffix) else act(path, *rest)  # type: ignore[operator]

    if moment == "manifest":
        folder.write_flushed = die_when("manifest.json", folder.write_flushed)  # type: ignore[assignment]
    elif moment == "rename":
        Path.rename = die  # type: ignore[method-assign,assignment]
    elif moment == "pointer":
        Path.replace = die  # type: ignore[method-assign,assignment]
    elif moment == "removal":
        folder.keep_only = die


def main(root: Path, last: int, moment: str | None) -> None:
    if moment:
        kill_at(moment)
    distributed.initialize()
    with distributed.parallel_layout(distributed.ParallelConfig()) as layout:
        policy = Policy(PolicyConfig(), OptimizerConfig(), model_config(tied=True, experts=False), layout)
        checkpoints = Checkpoints(root, keep=2)
        saved = checkpoints.latest()
        if saved is not None:
            load_training_state(saved, {"policy": policy})
        first = saved.progress["step"] if saved else 0
        print(f"resumed {first}", flush=True)
        for step in range(first + 1, last + 1):
            checkpoints.save(step, {"policy": policy}, {"step": step})
            checkpoints.wait()
            print(f"saved {step}", flush=True)
    distributed.finalize()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
