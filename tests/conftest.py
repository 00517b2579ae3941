"""What must be so before tests import anything else.

Without a GPU Triton's kernels run in its interpreter, on the CPU. Ranks and runs are forks of one process that has imported the
program and done nothing else: imports were half of the tests' time.
"""

import os
import signal
import sys
from collections.abc import Iterator

import hypothesis
import pytest
import torch
import torch.multiprocessing as multiprocessing
from support.expected_skips import pytest_addoption, pytest_make_collect_report, pytest_runtest_makereport

__all__ = ["pytest_addoption", "pytest_make_collect_report", "pytest_runtest_makereport"]

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# How long an example takes is the machine's affair: no assertion is about time.
hypothesis.settings.register_profile("without deadlines", deadline=None)
hypothesis.settings.load_profile("without deadlines")

# Whoever runs the tests may ignore these, as `nohup` and a shell's `&` do, and every program would inherit that. A handler is
# left behind where another program begins.
for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

# A room fetches most of what it has when it is asked for: without the last three every rank and run would do so for itself.
multiprocessing.set_forkserver_preload(
    [
        *("megatron_fork.cli", "megatron_fork.train", "megatron_fork.cli.commands", "megatron_fork.run.setup"),
        "transformers.models.qwen3.modeling_qwen3",
    ]
)


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    """A command that is run within the tests' own process listens from then on."""
    listened = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]
    before = {number: signal.getsignal(number) for number in listened}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def scale_of_balance_loss() -> Iterator[None]:
    """Megatron keeps it for the whole process: a backward pass without its schedule leaves one that the schedule cannot set."""
    yield
    experts = sys.modules.get("megatron.core.transformer.moe.moe_utils")
    if experts is not None:
        experts.MoEAuxLossAutoScaler.main_loss_backward_scale = None
