"""Starts SGLang's server with the key in `$MEGATRON_FORK_API_KEY`: on a command line every user of the machine could read it.

    python -m megatron_fork.serving.sglang_server --model-path FOLDER [option of sglang.launch_server ...]

vLLM reads a variable of its own, `VLLM_API_KEY`.
"""

from __future__ import annotations

import os
import runpy
import sys

from megatron_fork.errors import KEY_VARIABLE


def main() -> None:
    """Run `sglang.launch_server` in this process, as `python -m` would; its subprocesses see it as the main module."""
    key = os.environ.get(KEY_VARIABLE)
    if key:
        sys.argv += ["--api-key", key]  # the kernel shows only the arguments that the process was started with
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
