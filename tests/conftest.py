"""What must be so before tests import anything else.

Without a GPU Triton's kernels run in its interpreter, on the CPU. Ranks and runs are forks of one process that has imported the
program and done nothing else: imports were half of the tests' time.
"""

import os

import hypothesis
import torch
import torch.multiprocessing as multiprocessing

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# How long an example takes is the machine's affair: no assertion is about time.
hypothesis.settings.register_profile("without deadlines", deadline=None)
hypothesis.settings.load_profile("without deadlines")
multiprocessing.set_forkserver_preload(["megatron_fork.cli", "megatron_fork.train"])
